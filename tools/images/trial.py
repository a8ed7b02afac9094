"""`python -m tools.images.trial`: a fleet of the built images, on this machine, without a container engine.

Each role's image is mounted by buildah and run by runc as Kubernetes would: as the image's own user, the root
file system read-only, no capabilities, memory at /tmp and a folder of its own for models. The network is the
host's, so everything listens on the loopback interface. One request is streamed through; then all are told
to stop.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from tools.images.shell import CommandFailed, run
from tools.images.targets import ROOT, version

MODEL = "smollm2-135m-instruct"
MOUNTED = "/etc/tokenfleet"
CACHE = "/var/cache/tokenfleet"
PATIENCE_S = 90.0
GRACE_S = 40.0


class Container:
    """One image as a running process."""

    def __init__(self, image: str, bundle: Path, environment: dict[str, str]) -> None:
        self.image = image
        self._bundle = bundle
        self._id = run("buildah", "from", "--pull-never", image)
        config = json.loads(run("buildah", "inspect", self._id))["OCIv1"]["config"]
        root = run("buildah", "mount", self._id)
        spec = _spec(config, root, bundle, environment)
        self.log = bundle / "log"
        (bundle / "config.json").write_text(json.dumps(spec), encoding="utf-8")
        self._name = f"tokenfleet-{bundle.name}-{self._id[-12:]}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["runc", "run", "--no-new-keyring", "--bundle", str(self._bundle), self._name]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self) -> int:
        """SIGTERM; answers the exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            subprocess.run(["runc", "kill", self._name, "TERM"], capture_output=True, check=False)
        try:
            return self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            subprocess.run(["runc", "delete", "--force", self._name], capture_output=True, check=False)
            return -1

    @property
    def ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            subprocess.run(["runc", "delete", "--force", self._name], capture_output=True, check=False)
        run("buildah", "umount", self._id)
        run("buildah", "rm", self._id)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.images.trial", description=__doc__)
    parser.add_argument("--prefix", default="localhost/tokenfleet/", help="before the images' names")
    parser.add_argument("--tag", default="", help="default: the project's version")
    arguments = parser.parse_args()
    try:
        _try(arguments.prefix, arguments.tag or version())
    except CommandFailed as error:
        sys.exit(f"trial: {error}")


def _try(prefix: str, tag: str) -> None:
    with tempfile.TemporaryDirectory(prefix="tokenfleet-trial-") as folder, ExitStack() as stack:
        fleet = _fleet()
        containers = {}
        for role, (target, environment) in fleet.items():
            bundle = Path(folder) / role
            bundle.mkdir()
            (bundle / "catalog.yaml").write_text(yaml.safe_dump(_catalog()), encoding="utf-8")
            container = containers[role] = Container(f"{prefix}{target}:{tag}", bundle, environment)
            stack.callback(container.remove)
        began = time.monotonic()
        for container in containers.values():
            container.start()
        url = "http://" + fleet["gateway"][1]["TOKENFLEET_GATEWAY_HTTP_LISTEN"]
        _until_answered(url, containers)
        print(f"ready and answering after {time.monotonic() - began:.1f} s", flush=True)
        frames, text = _streamed(url)
        print(f"{MODEL} streamed {frames} frames: {text!r}", flush=True)
        codes = {role: container.stop() for role, container in containers.items()}
        if any(codes.values()):
            raise CommandFailed(f"not all stopped cleanly: {codes}\n{_logs(containers)}")
        print(f"all {len(codes)} stopped cleanly on SIGTERM", flush=True)


def _fleet() -> dict[str, tuple[str, dict[str, str]]]:
    """By role, in the order in which they stop: the image's target, and what the container is told."""
    loader, router, tokenizer, worker, http = (f"127.0.0.1:{port}" for port in _free_ports(5))
    common = {"LISTEN": "127.0.0.1:0", "METRICS_LISTEN": "127.0.0.1:0", "LOG_FORMAT": "json"}

    def told(service: str, **settings: str) -> dict[str, str]:
        return {f"TOKENFLEET_{service}_{name}": value for name, value in {**common, **settings}.items()}

    gateway = told("GATEWAY", HTTP_LISTEN=http, TOKENIZERS=tokenizer, ROUTERS=router, LOADER=loader)
    return {
        "gateway": ("gateway", gateway),
        "router": ("router", told("ROUTER", LISTEN=router, WORKERS=worker, LOADER=loader)),
        "tokenizer": ("tokenizer-smollm2", told("TOKENIZER", LISTEN=tokenizer, LOADER=loader)),
        "worker": ("worker-llamacpp-smollm2", told("WORKER", LISTEN=worker)),
        "model-loader": (
            "model-loader",
            told("MODEL_LOADER", LISTEN=loader, WORKERS=worker, CATALOG=f"{MOUNTED}/catalog.yaml"),
        ),
    }


def _catalog() -> dict[str, Any]:
    """The project's own entry, from the file in the image instead of from a package."""
    told = yaml.safe_load((ROOT / "config" / "catalog.yaml").read_text(encoding="utf-8"))
    entry = next(entry for entry in told["models"] if entry["name"] == MODEL)
    return {"models": [{**entry, "source": f"file:///models/{entry['source'].rpartition('/')[2]}"}]}


def _spec(config: dict[str, Any], root: str, bundle: Path, environment: dict[str, str]) -> dict[str, Any]:
    """The runtime's configuration of a container that may do as little as one under the chart."""
    uid, gid = map(int, config["User"].split(":"))
    (bundle / "cache").mkdir()
    os.chown(bundle / "cache", uid, gid)
    memory = ["nosuid", "nodev", "mode=1777"]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": memory},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmp", "options": memory},
        {"destination": CACHE, "type": "bind", "source": str(bundle / "cache"), "options": ["bind", "rw"]},
        {"destination": MOUNTED, "type": "bind", "source": str(bundle), "options": ["bind", "ro"]},
    ]
    values = [*config["Env"], *(f"{name}={value}" for name, value in environment.items())]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": root, "readonly": True},
        "process": {
            "user": {"uid": uid, "gid": gid},
            "args": config["Entrypoint"],
            "env": values,
            "cwd": config["WorkingDir"],
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
    }


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        holders = [stack.enter_context(socket.socket()) for _ in range(count)]
        for holder in holders:
            holder.bind(("127.0.0.1", 0))
        return [holder.getsockname()[1] for holder in holders]


def _until_answered(url: str, containers: dict[str, Container]) -> None:
    """Waits for the first answer. Raises CommandFailed with the logs when none comes."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            _streamed(url, tokens=1)
            return
        except (OSError, CommandFailed) as error:
            ended = [role for role, container in containers.items() if container.ended]
            if ended or time.monotonic() > deadline:
                why = f"{ended[0]} ended" if ended else f"no answer: {error}"
                raise CommandFailed(f"{why}\n{_logs(containers)}") from error
            time.sleep(0.5)


def _streamed(url: str, tokens: int = 24) -> tuple[int, str]:
    """Frames with text, and the text. Raises CommandFailed when the stream ends as it should not."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    pieces, done = [], False
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            payload = line.decode().strip().removeprefix("data: ")
            if payload == "[DONE]":
                done = True
            elif payload:
                choices = json.loads(payload).get("choices") or [{}]
                pieces.append(choices[0].get("delta", {}).get("content") or "")
    if not done or not any(pieces):
        raise CommandFailed(f"the stream ended without [DONE] or without text: {pieces}")
    return sum(map(bool, pieces)), "".join(pieces)


def _logs(containers: dict[str, Container]) -> str:
    tails = []
    for role, container in containers.items():
        lines = container.log.read_text(encoding="utf-8", errors="replace").splitlines()[-6:]
        tails.append("\n".join([f"-- {role}", *lines]))
    return "\n".join(tails)


if __name__ == "__main__":
    main()
