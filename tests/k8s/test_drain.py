"""How the trial on a cluster drains a node, on a kubectl that answers what a test says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.drain import busiest_node, drained
from tests.k8s.shell import Cluster, StepFailed, StepSkipped

LABELS = {"app.kubernetes.io/component": "worker"}
_KUBECTL = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
says = json.loads((folder / "says.json").read_text())
_, _, verb, *rest = sys.argv[1:]
with (folder / "asked").open("a") as asked:
    asked.write(" ".join((verb, *rest)) + "\\n")
if verb == "create":
    review = json.load(sys.stdin)
    wanted = review["spec"]["resourceAttributes"]
    print(json.dumps({{"status": {{"allowed": [wanted["verb"], wanted["resource"]] != says["forbidden"]}}}}))
elif verb == "get":
    print(json.dumps({{"items": says[rest[0]]}}))
elif verb == "drain":
    print(says["drain"])
    sys.exit(says["code"])
"""


def _node(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": spec,
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }


def _pod(name: str, node: str, *, ready: bool = True) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": LABELS},
        "spec": {"nodeName": node},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }


class Stage:
    """A cluster of three nodes with three workers, to be changed before it is asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        kubectl = folder / "kubectl"
        kubectl.write_text(_KUBECTL.format(python=sys.executable, folder=str(folder)), encoding="utf-8")
        kubectl.chmod(0o755)
        self.cluster = Cluster("none", Path("helm"), str(kubectl), "llm", "fleet")
        worker = {"replicas": 3, "selector": {"matchLabels": LABELS}}
        self.says: dict[str, Any] = {
            "forbidden": [],
            "nodes": [_node("a"), _node("b"), _node("c")],
            "pods": [_pod("1", "b"), _pod("2", "b"), _pod("3", "c")],
            "deployments": [{"metadata": {"name": "worker"}, "spec": worker}],
            "drain": "node/a drained",
            "code": 0,
        }

    def play(self) -> Cluster:
        (self._folder / "says.json").write_text(json.dumps(self.says), encoding="utf-8")
        return self.cluster

    @property
    def uncordoned(self) -> bool:
        return "uncordon a" in (self._folder / "asked").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_the_node_with_most_of_the_release_is_drained(stage: Stage) -> None:
    assert busiest_node(stage.play()) == "b"


def test_a_kubeconfig_that_may_not_cordon_skips(stage: Stage) -> None:
    stage.says["forbidden"] = ["patch", "nodes"]
    with pytest.raises(StepSkipped, match="may not patch nodes"):
        busiest_node(stage.play())


def test_without_another_node_to_go_to_there_is_nothing_to_drain(stage: Stage) -> None:
    stage.says["nodes"][1]["spec"] = {"unschedulable": True}
    stage.says["nodes"][2]["spec"] = {"taints": [{"key": "x", "effect": "NoSchedule"}]}
    with pytest.raises(StepSkipped, match="1 node takes pods"):
        busiest_node(stage.play())


def test_evictions_that_a_budget_put_off_are_counted(stage: Stage) -> None:
    stage.says["drain"] = "Cannot evict pod as it would violate the pod's disruption budget.\n" * 2
    with drained(stage.play(), "a") as drain:
        assert not stage.uncordoned
    assert drain.refused == 2
    assert drain.fewest == {"worker": 3}
    assert stage.uncordoned


def test_two_pods_gone_at_once_fail_the_step(stage: Stage) -> None:
    stage.says["pods"] = [_pod("1", "b", ready=False), _pod("2", "c")]
    with pytest.raises(StepFailed, match="1 of 3 pods of worker"), drained(stage.play(), "a"):
        pass
    assert stage.uncordoned


def test_what_is_left_on_the_node_fails_the_step(stage: Stage) -> None:
    stage.says["pods"] = [_pod("1", "a"), _pod("2", "b"), _pod("3", "c")]
    with pytest.raises(StepFailed, match="still has 1"), drained(stage.play(), "a"):
        pass
    assert stage.uncordoned


def test_a_drain_that_fails_leaves_no_cordoned_node(stage: Stage) -> None:
    stage.says["code"], stage.says["drain"] = 1, "error: it hangs"
    with pytest.raises(StepFailed, match="it hangs"), drained(stage.play(), "a"):
        pass
    assert stage.uncordoned
