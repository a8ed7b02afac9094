"""A node is drained as its operator would do it, and what that takes from the fleet is watched.

Only pods of the release are evicted: the cluster may be somebody's. While a node is cordoned, nobody's new
pods come to it, so it is uncordoned whatever happens.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.k8s.shell import Cluster, StepFailed, StepSkipped

TIMEOUT_S = 900
_NEEDED = (
    # verb, group, resource, subresource, in the release's namespace only
    ("list", "", "nodes", "", False),
    ("get", "", "nodes", "", False),
    ("patch", "", "nodes", "", False),
    ("list", "", "pods", "", False),
    ("create", "", "pods", "eviction", True),
)
_REFUSED = "would violate the pod's disruption budget"


@dataclass
class Drain:
    """What one drain was seen to do."""

    node: str
    moved: int = 0
    refused: int = 0  # evictions that a budget put off
    fewest: dict[str, int] = field(default_factory=dict)  # pods ready at any moment, by Deployment


def busiest_node(cluster: Cluster) -> str:
    """The one with the most of the release. Raises StepSkipped where none may be drained or is to spare."""
    for verb, group, resource, subresource, here in _NEEDED:
        if not _allowed(cluster, verb, group, resource, subresource, here):
            what = f"{resource}/{subresource}" if subresource else resource
            raise StepSkipped(f"this kubeconfig may not {verb} {what}, which kubectl drain does")
    nodes: list[str] = [node["metadata"]["name"] for node in cluster.get("nodes") if _takes_pods(node)]
    if len(nodes) < 2:
        raise StepSkipped(f"{len(nodes)} node takes pods; what is drained needs another to go to")
    there = Counter(pod["spec"].get("nodeName") for pod in _pods(cluster))
    return max(sorted(nodes), key=lambda node: there[node])


@contextmanager
def drained(cluster: Cluster, node: str) -> Iterator[Drain]:
    """The node, empty of the release and cordoned meanwhile. Raises StepFailed if a budget was not kept."""
    wanted = {one["metadata"]["name"]: one for one in cluster.get("deployments", _selected(cluster))}
    drain = Drain(node, moved=sum(pod["spec"].get("nodeName") == node for pod in _pods(cluster)))
    drain.fewest = {name: one["spec"]["replicas"] for name, one in wanted.items()}
    try:
        _drain(cluster, drain, wanted)
        for name, one in wanted.items():
            fewest, replicas = drain.fewest[name], one["spec"]["replicas"]
            if fewest < replicas - 1:
                raise StepFailed(f"for a moment {fewest} of {replicas} pods of {name} were ready")
        if left := [pod["metadata"]["name"] for pod in _pods(cluster) if pod["spec"].get("nodeName") == node]:
            raise StepFailed(f"{node} is drained, and still has {', '.join(left)}")
        yield drain
    finally:
        cluster.kubectl("uncordon", node)


def _drain(cluster: Cluster, drain: Drain, wanted: dict[str, dict[str, Any]]) -> None:
    process = cluster.popen(
        *("drain", drain.node, "--ignore-daemonsets", "--delete-emptydir-data"),
        *(f"--pod-selector={cluster.selector}", f"--timeout={TIMEOUT_S}s"),
    )
    try:
        going = True
        while going:  # looked at once more when it has ended
            going = process.poll() is None
            ready = _ready(cluster, wanted)
            drain.fewest = {name: min(count, ready[name]) for name, count in drain.fewest.items()}
            time.sleep(0.5 if going else 0)
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=30)
    drain.refused = said.count(_REFUSED)
    if process.returncode:
        raise StepFailed(f"kubectl drain ended with {process.returncode}:\n{said[-3000:]}")


def _ready(cluster: Cluster, wanted: dict[str, dict[str, Any]]) -> Counter[str]:
    """How many pods can work and are to stay, by Deployment."""
    ready: Counter[str] = Counter()
    for pod in _pods(cluster):
        conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
        if "deletionTimestamp" not in pod["metadata"] and conditions.get("Ready") == "True":
            labels = pod["metadata"]["labels"].items()
            ready.update(
                name
                for name, one in wanted.items()
                if one["spec"]["selector"]["matchLabels"].items() <= labels
            )
    return ready


def _pods(cluster: Cluster) -> list[dict[str, Any]]:
    return cluster.get("pods", _selected(cluster))


def _selected(cluster: Cluster) -> str:
    return f"--selector={cluster.selector}"


def _takes_pods(node: dict[str, Any]) -> bool:
    ready = any(
        each["type"] == "Ready" and each["status"] == "True" for each in node["status"].get("conditions", [])
    )
    forbidden = any(taint["effect"] != "PreferNoSchedule" for taint in node["spec"].get("taints", []))
    return ready and not forbidden and not node["spec"].get("unschedulable", False)


def _allowed(cluster: Cluster, verb: str, group: str, resource: str, subresource: str, here: bool) -> bool:
    """By an object: `kubectl auth can-i` ends with the same code when the cluster cannot be reached."""
    attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource}
    if here:
        attributes["namespace"] = cluster.namespace
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    told = json.loads(cluster.kubectl("create", "--filename=-", "--output=json", stdin=json.dumps(review)))
    return bool(told["status"]["allowed"])
