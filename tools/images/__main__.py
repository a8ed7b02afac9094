"""`python -m tools.images build|archives [TARGET…]`: see `make images` and `make rootfs`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tools.images.base import build_base
from tools.images.shell import CommandFailed, run
from tools.images.targets import DOCKERFILE, ON_VENDOR_IMAGES, ROOT, targets, version


class Build(NamedTuple):
    """What all images of one run have in common."""

    engine: str  # docker or buildah
    registry: str
    tag: str
    revision: str
    epoch: int
    base: str  # empty: the Dockerfile's

    def image(self, target: str) -> str:
        prefix = f"{self.registry.rstrip('/')}/" if self.registry else ""
        return f"{prefix}tokenfleet/{target}:{self.tag}"


def main() -> None:
    arguments = _parse()
    known = targets(DOCKERFILE.read_text(encoding="utf-8"))
    if unknown := set(arguments.targets) - set(known):
        sys.exit(f"the Dockerfile has no target {min(unknown)!r}; there are {', '.join(known)}")
    wanted = arguments.targets or [target for target in known if target not in ON_VENDOR_IMAGES]
    try:
        build = _prepare(arguments)
        for target in wanted:
            _build(build, target)
            if arguments.what == "archives":
                _archive(build, target, arguments.output)
    except CommandFailed as error:
        sys.exit(f"images: {error}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.images", description=__doc__)
    parser.add_argument("what", choices=["build", "archives"], help="archives: without any registry")
    parser.add_argument("targets", nargs="*", help="default: all but those on the engine vendors' images")
    parser.add_argument("--registry", default=os.environ.get("IMAGE_REGISTRY", ""), help="before the names")
    parser.add_argument(
        "--tag", default=os.environ.get("IMAGE_TAG") or version(), help="default: the version"
    )
    parser.add_argument("--base", default=os.environ.get("PYTHON_IMAGE", ""), help="another Python image")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "images", help="where archives go")
    return parser.parse_args()


def _prepare(arguments: argparse.Namespace) -> Build:
    epoch = int(
        os.environ.get("SOURCE_DATE_EPOCH") or run("git", "-C", str(ROOT), "log", "-1", "--format=%ct")
    )
    alone = arguments.what == "archives"
    return Build(
        engine="buildah" if alone else _engine(),
        registry=arguments.registry or ("localhost" if alone else ""),
        tag=arguments.tag,
        revision=run("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        epoch=epoch,
        base=arguments.base or (build_base(epoch) if alone else ""),
    )


def _answers(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _engine() -> str:
    if shutil.which("docker") and _answers("docker", "info"):
        return "docker"
    if shutil.which("buildah"):
        return "buildah"
    raise CommandFailed("neither a running Docker engine nor buildah is here; see also: make rootfs")


def _build(build: Build, target: str) -> None:
    began = time.monotonic()
    command = {
        "docker": ["docker", "buildx", "build", "--load"],
        # needs neither a daemon nor privileges that a container lacks; times are those of the commit
        "buildah": ["buildah", "build", "--isolation", "chroot", "--layers", "--timestamp", str(build.epoch)],
    }[build.engine]
    values = {"SOURCE_DATE_EPOCH": str(build.epoch), "VERSION": version(), "REVISION": build.revision}
    if build.base:
        values["PYTHON_IMAGE"] = build.base
    for name, value in values.items():
        command += ["--build-arg", f"{name}={value}"]
    for name, path in _secrets().items():
        command += ["--secret", f"id={name},src={path}"]
    run(*command, "--target", target, "--tag", build.image(target), str(ROOT), quiet=True)
    print(f"{build.image(target)}  {_size(build, target)} MB  ({time.monotonic() - began:.0f} s)", flush=True)


def _secrets() -> dict[str, str]:
    """What pip in the build needs to know of this machine's network; it does not get into any image."""
    told = {"pip": os.environ.get("PIP_CONFIG_FILE"), "ca": os.environ.get("PIP_CERT")}
    return {name: path for name, path in told.items() if path and Path(path).is_file()}


def _size(build: Build, target: str) -> int:
    if build.engine == "docker":
        return int(run("docker", "image", "inspect", "--format", "{{.Size}}", build.image(target))) // 10**6
    listed = json.loads(run("buildah", "images", "--json", build.image(target)))
    number, unit = listed[0]["size"].split()
    return round(float(number) * {"GB": 1000.0, "MB": 1.0, "KB": 0.001}[unit])


def _archive(build: Build, target: str, folder: Path) -> None:
    """For `ctr --namespace k8s.io images import`, or `docker load`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target}.tar"
    path.unlink(missing_ok=True)
    image = build.image(target)
    run("buildah", "push", "--quiet", image, f"docker-archive:{path}:{image}")
    print(f"  {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}", flush=True)


if __name__ == "__main__":
    main()
