"""Requests that never stop while a step changes the fleet, asked from inside the cluster.

A Service's own address is the one that clients use, and the only one whose load balancing is the cluster's: a
port that is forwarded ends at one pod and dies with it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.k8s.shell import Cluster, StepFailed

CLIENTS = 6
_PATIENCE_S = 180.0


@dataclass
class Outcome:
    """What the clients saw; empty until the load has ended."""

    requests: int = 0
    lost: list[str] = field(default_factory=list)


@contextmanager
def under_load(cluster: Cluster, url: str, model: str, image: str) -> Iterator[Outcome]:
    """Raises StepFailed at the end if a request was lost, or if none was made."""
    outcome = Outcome()
    name = f"load-{time.time_ns() // 1_000_000:x}"
    cluster.kubectl("apply", "--filename=-", stdin=json.dumps(_pod(name, url, model, image)))
    try:
        _until(cluster, name, "started")
        yield outcome
        cluster.kubectl("exec", name, "--", "touch", "/tmp/stop")
        told = json.loads(_until(cluster, name, '"requests"'))
        outcome.requests, outcome.lost = told["requests"], told["lost"]
    finally:
        cluster.kubectl("delete", "pod", name, "--wait=false", "--grace-period=1", "--ignore-not-found")
    if outcome.lost:
        shown = "\n".join(outcome.lost[:10])
        raise StepFailed(f"{len(outcome.lost)} of {outcome.requests} requests were lost:\n{shown}")
    if not outcome.requests:
        raise StepFailed("no request was made meanwhile")


def _until(cluster: Cluster, pod: str, word: str) -> str:
    """The line of the pod's log that has the word."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            lines = cluster.kubectl("logs", pod).splitlines()
        except StepFailed:
            lines = []  # it has not started yet
        for line in lines:
            if word in line:
                return line
        time.sleep(1)
    raise StepFailed(f"the load's pod did not say {word}: {cluster.kubectl('describe', 'pod', pod)[-1500:]}")


def _pod(name: str, url: str, model: str, image: str) -> dict[str, Any]:
    script = Path(__file__).with_name("client_pod.py").read_text(encoding="utf-8")
    environment = {"FLEET_URL": url, "FLEET_MODEL": model, "FLEET_CLIENTS": str(CLIENTS)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "load",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-c", script],
                    "env": [{"name": key, "value": value} for key, value in environment.items()],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }
