"""`make e2e-k8s KUBECONFIG=…`: the chart's whole life on a cluster, step by step.

Needs a kubeconfig and images that the nodes can run (IMAGE_REGISTRY, IMAGE_TAG; IMAGE_PULL_POLICY=Never where
they were imported). Everything happens in a namespace of its own, which is gone afterwards, also after
Ctrl-C. KEEP=1 leaves it after a failure, to be looked at.
"""

import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.k8s.shell import Cluster, StepFailed, StepSkipped
from tests.k8s.steps import Fleet
from tools.helm_cli import NoHelm, helm


def main() -> None:
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if not kubeconfig or not Path(kubeconfig).is_file():
        sys.exit("name the cluster: make e2e-k8s KUBECONFIG=/path/to/kubeconfig")
    kubectl = os.environ.get("KUBECTL") or shutil.which("kubectl")
    if kubectl is None:
        sys.exit("there is no kubectl on the path: install it, or set KUBECTL to its binary")
    try:
        binary = helm()
    except NoHelm as problem:
        sys.exit(str(problem))
    mark = secrets.token_hex(3)
    # the release's name, too, is its own: whole-cluster questions are asked by it
    cluster = Cluster(
        str(Path(kubeconfig).resolve()), binary, kubectl, f"tokenfleet-e2e-{mark}", f"fleet-{mark}"
    )
    fleet = Fleet(cluster, os.environ)
    sys.exit(_run(fleet))


def _run(fleet: Fleet) -> int:
    """0, or 1 after a step that failed."""
    print(f"namespace {fleet.cluster.namespace}, images {fleet.image('gateway')} …", flush=True)
    failed = False
    skipped: list[str] = []
    try:
        for name, step in fleet.steps():
            try:
                failed = not _step(name, step)
            except StepSkipped as reason:
                print(f"skipped: {reason}", flush=True)
                skipped.append(name)
            if failed:
                print(fleet.findings(), flush=True)
                return 1
    except KeyboardInterrupt:
        print("\ninterrupted", flush=True)
        return 130
    finally:
        if failed and os.environ.get("KEEP"):
            print(f"kept: {fleet.cluster.namespace}", flush=True)
        else:
            _step("clean up", fleet.clean_up)
    print(f"all steps passed but {', '.join(skipped)}" if skipped else "all steps passed", flush=True)
    return 0


def _step(name: str, step: Callable[[], str]) -> bool:
    print(f"{name} …", end=" ", flush=True)
    began = time.monotonic()
    try:
        told = step()
    except StepFailed as error:
        print(f"FAILED after {time.monotonic() - began:.0f} s\nstep failed: {name}\n{error}", flush=True)
        return False
    print(f"{time.monotonic() - began:.0f} s{': ' if told else ''}{told}", flush=True)
    return True


if __name__ == "__main__":
    main()
