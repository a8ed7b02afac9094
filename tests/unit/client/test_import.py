"""What an application pays for having the SDK."""

import subprocess
import sys
from importlib.metadata import requires

PROGRAM = "import sys, tokenfleet.client; print(*{name.partition('.')[0] for name in sys.modules})"


def test_the_sdk_imports_only_what_the_bare_install_has() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    bare = [line for line in requires("tokenfleet") or () if "extra ==" not in line]
    assert any(line.startswith("grpcio") for line in bare)
    imported = set(done.stdout.split()) - set(sys.stdlib_module_names)
    # grpc looks for its optional companions by itself
    ours = {name for name in imported if not name.startswith(("_", "cython", "grpc"))}
    assert ours <= {"google", "tokenfleet", "typing_extensions"}
