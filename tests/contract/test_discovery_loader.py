"""A real model-loader that finds its workers through EndpointSlices."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.kube_api import KubeApi, endpoint, kube_api
from tests.contract.scripted_worker import ScriptedWorker, until
from tests.contract.test_model_loader_residency import LAZY, WARM, loader_with
from tokenfleet.v1 import common_pb2

WORKERS = "kubernetes://workers.fleet:grpc"
Ready = common_pb2.LoadProgress.STAGE_READY


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with kube_api(tmp_path / "account") as api:
        yield api


def listed(api: KubeApi, worker: ScriptedWorker, zone: str = "z1", **conditions: bool) -> None:
    host, _, port = worker.target.rpartition(":")
    api.put(worker.name, endpoint(host, worker.name, zone, **conditions), port=int(port))


async def test_workers_are_loaded_as_they_come_and_forgotten_as_they_go(api: KubeApi, tmp_path: Path) -> None:
    a, b = ScriptedWorker("a"), ScriptedWorker("b")
    environment = {"KUBECONFIG": str(api.kubeconfig())}
    async with loader_with(tmp_path, (a, b), named=WORKERS, env=environment) as harness:
        await harness.loader.ready("tokenfleet.v1.ModelLoader")
        # not ready, as a worker is that waits for its first model
        listed(api, a, "z7", ready=False)
        await harness.knows(WARM, ["ready"])
        assert [place.zone for place in (await harness.residency(WARM)).places] == ["z7"]
        listed(api, b)
        await harness.knows(WARM, ["ready", "ready"])
        api.delete("a")
        await harness.knows(WARM, ["ready"])
        assert (await harness.residency(WARM)).places[0].worker_name == "b"


async def test_a_worker_that_is_to_go_is_ordered_nothing_new(api: KubeApi, tmp_path: Path) -> None:
    a, b = ScriptedWorker("a"), ScriptedWorker("b")
    environment = {"KUBECONFIG": str(api.kubeconfig())}
    async with loader_with(tmp_path, (a, b), named=WORKERS, env=environment) as harness:
        listed(api, a)
        listed(api, b)
        await harness.knows(WARM, ["ready", "ready"])
        listed(api, a, ready=False, serving=True, terminating=True)
        await harness.loader.logged("peer changed")
        assert (await harness.ensure(LAZY))[-1].progress.stage == Ready
        assert [request.spec.name for request in a.loads] == [WARM]
        assert [request.spec.name for request in b.loads] == [WARM, LAZY]


async def test_who_asks_before_any_worker_is_known_waits(api: KubeApi, tmp_path: Path) -> None:
    """The API server is down: that says nothing about the workers."""
    worker = ScriptedWorker("a")
    environment = {"KUBECONFIG": str(api.kubeconfig())}
    api.stop()
    flags = ("--no-worker-timeout-s", "1")
    async with loader_with(tmp_path, (worker,), *flags, named=WORKERS, env=environment) as harness:
        asking = asyncio.create_task(harness.ensure(LAZY))
        await harness.loader.logged("endpoints cannot be followed, the last known ones stay")
        await asyncio.wait({asking}, timeout=2.5)  # longer than an absent worker would be waited for
        assert not asking.done(), asking.result()
        api.start()
        listed(api, worker)
        assert (await asking)[-1].progress.stage == Ready
        await until(lambda: worker.loads)
