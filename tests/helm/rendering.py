"""The chart as Helm renders it: real Helm, every values file, both ends of the supported range."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import helm_cli

Object = dict[str, Any]

CHART = Path(__file__).resolve().parents[2] / "helm" / "tokenfleet"
OLDEST, NEWEST = "1.30.0", "1.37.0"
RELEASE, NAMESPACE = "fleet", "llm"
TIMEOUT_S = 60

# Every values file by itself, and what is meant to be combined.
VALUES: dict[str, tuple[str, ...]] = {
    "default": (),
    "cpu": ("values-cpu.yaml",),
    "gpu": ("values-gpu.yaml",),
    "multizone": ("values-multizone.yaml",),
    "cpu-multizone": ("values-cpu.yaml", "values-multizone.yaml"),
    "gpu-multizone": ("values-gpu.yaml", "values-multizone.yaml"),
    "every-branch": ("ci/values-every-branch.yaml",),
    "external-store": ("ci/values-external-store.yaml",),
    "bare": ("ci/values-bare.yaml",),
    # what `make e2e-k8s` installs
    "e2e": ("../../tests/k8s/values.yaml",),
}


@dataclass(slots=True, frozen=True)
class Ended:
    """How a run of Helm ended."""

    code: int
    out: str
    err: str


def run_helm(*arguments: str) -> Ended:
    """Runs Helm in the chart's folder; a test is skipped only where no Helm can be had for the platform."""
    try:
        binary = helm_cli.helm()
    except helm_cli.NoHelm as problem:
        pytest.skip(str(problem))
    ended = subprocess.run(
        [str(binary), *arguments], cwd=CHART, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def template(*arguments: str, version: str = NEWEST) -> Ended:
    return run_helm("template", RELEASE, ".", "--namespace", NAMESPACE, "--kube-version", version, *arguments)


@cache
def manifest(name: str, version: str = NEWEST) -> str:
    """What Helm makes of the values that `VALUES` has under this name."""
    flags = [flag for file in VALUES[name] for flag in ("--values", file)]
    ended = template(*flags, version=version)
    assert ended.code == 0, ended.err
    return ended.out


@cache
def _parsed(name: str, version: str) -> list[Object]:
    return [each for each in yaml.safe_load_all(manifest(name, version)) if each]


def objects(name: str, version: str = NEWEST) -> list[Object]:
    """The objects of a rendering; the caller may change them."""
    return copy.deepcopy(_parsed(name, version))


def label(one: Object) -> str:
    return f"{one['kind']}/{one['metadata']['name']}"


def of_kind(all_: list[Object], *kinds: str) -> list[Object]:
    return [one for one in all_ if one["kind"] in kinds]


def pods(all_: list[Object]) -> Iterator[tuple[Object, dict[str, str], Object]]:
    """Each object that makes pods, the pods' labels and their spec."""
    for one in all_:
        if one["kind"] == "Pod":
            yield one, one["metadata"].get("labels", {}), one["spec"]
        elif one["kind"] in {"Deployment", "StatefulSet", "DaemonSet", "Job"}:
            inner = one["spec"]["template"]
            yield one, inner["metadata"].get("labels", {}), inner["spec"]


def containers(spec: Object) -> list[Object]:
    found: list[Object] = [*spec.get("initContainers", []), *spec["containers"]]
    return found


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def read_values(name: str) -> Object:
    """The values file's own words, the defaults not in them."""
    merged: Object = {}
    for file in VALUES[name]:
        merged |= yaml.safe_load((CHART / file).read_text(encoding="utf-8"))
    return merged
