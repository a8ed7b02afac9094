"""A base image where there is no registry: Debian and its Python, put together by debootstrap.

It takes the place of the official Python image, on which it is modelled: no caches, no documentation, and
only what Python and TLS need. The archive is sorted and dated, so that the same packages give the same image.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from tools.images.shell import run

NAME = "localhost/tokenfleet/base"
SUITE = "bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates"
_LEFT_OUT = (
    "./var/cache/* ./var/lib/apt/lists/* ./var/log/*.log ./var/log/apt/* ./usr/share/doc/* ./usr/share/man/* "
    "./usr/share/info/* ./usr/share/locale/* ./dev/* ./proc/* ./sys/* ./etc/hostname ./etc/resolv.conf"
).split()
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def build_base(epoch: int) -> str:
    """The base image's name; built unless it is there. Needs root, debootstrap and buildah."""
    if subprocess.run(["buildah", "inspect", NAME], capture_output=True, check=False).returncode == 0:
        return NAME
    with tempfile.TemporaryDirectory() as folder:
        root, archive = Path(folder) / "root", Path(folder) / "base.tar"
        run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", SUITE, str(root), quiet=True)
        _pack(root, archive, epoch)
        container = run("buildah", "from", "scratch")
        try:
            run("buildah", "add", "--quiet", container, str(archive), "/")
            run("buildah", "config", "--env", _PATH, "--cmd", "/bin/sh", container)
            run("buildah", "commit", "--quiet", "--timestamp", str(epoch), container, NAME)
        finally:
            run("buildah", "rm", container)
    return NAME


def _pack(root: Path, archive: Path, epoch: int) -> None:
    excludes = [f"--exclude={path}" for path in _LEFT_OUT]
    order = ["--sort=name", f"--mtime=@{epoch}", "--numeric-owner", "--pax-option=delete=atime,delete=ctime"]
    environment = {**os.environ, "LC_ALL": "C"}
    command = ["tar", *order, *excludes, "-C", str(root), "-cf", str(archive), "."]
    subprocess.run(command, check=True, env=environment)
