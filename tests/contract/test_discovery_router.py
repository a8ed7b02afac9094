"""A real router that finds its workers through EndpointSlices."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.contract.kube_api import KubeApi, endpoint, kube_api
from tests.contract.router_harness import COLD, MODEL, Harness, router_between
from tests.contract.scripted_worker import ScriptedWorker
from tokenfleet.runtime.grpc_host import open_channel
from tokenfleet.runtime.roles import ROUTER
from tokenfleet.v1 import worker_pb2

WORKERS = "kubernetes://workers.fleet:grpc"
SERVICE = "tokenfleet.v1.Router"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with kube_api(tmp_path / "account") as api:
        yield api


@asynccontextmanager
async def finding(api: KubeApi, workers: list[ScriptedWorker], *flags: str) -> AsyncIterator[Harness]:
    """A router that was told nothing but the Service's name, and no endpoint is listed yet."""
    environment = {"KUBECONFIG": str(api.kubeconfig())}
    async with router_between(workers, *flags, named=WORKERS, env=environment) as harness:
        yield harness


def listed(api: KubeApi, worker: ScriptedWorker, zone: str = "z1", **conditions: bool) -> None:
    """Each worker has a slice of its own, since on one host only the ports differ."""
    host, _, port = worker.target.rpartition(":")
    api.put(worker.name, endpoint(host, worker.name, zone, **conditions), port=int(port))


async def is_ready(harness: Harness) -> bool:
    async with open_channel(harness.router.address, ROUTER) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_workers_come_and_go_with_their_endpoints(api: KubeApi) -> None:
    workers = [ScriptedWorker("a"), ScriptedWorker("b")]
    async with finding(api, workers) as harness:
        await harness.router.ready(SERVICE)
        listed(api, workers[0], "z1")
        await harness.router.logged("worker connected", 1)
        assert (await harness.gateway.placed()).endpoint == workers[0].target
        listed(api, workers[1], "z2")
        await harness.router.logged("worker connected", 2)
        api.delete("a")
        await harness.router.logged("peer left", 1)
        assert set(await harness.views()) == {workers[1].target}
        assert {(await harness.gateway.placed()).endpoint for _ in range(2)} == {workers[1].target}


async def test_the_zone_is_the_endpoints_unless_the_worker_names_one(api: KubeApi) -> None:
    workers = [ScriptedWorker("a"), ScriptedWorker("b", zone="own")]
    async with finding(api, workers) as harness:
        for worker in workers:
            listed(api, worker, "z7")
        await harness.router.logged("worker connected", 2)
        views = await harness.views()
        assert [views[worker.target].info.zone for worker in workers] == ["z7", "own"]


async def test_a_worker_that_is_not_ready_is_watched_all_the_same(api: KubeApi) -> None:
    """A worker that loads is not ready: it is its own word that counts."""
    worker = ScriptedWorker("a")
    async with finding(api, [worker]) as harness:
        listed(api, worker, ready=False)
        await harness.router.logged("worker connected", 1)
        assert (await harness.gateway.placed()).endpoint == worker.target


async def test_a_terminating_worker_gets_nothing_new_and_keeps_what_it_has(api: KubeApi) -> None:
    workers = [ScriptedWorker("a"), ScriptedWorker("b")]
    async with finding(api, workers) as harness:
        for worker in workers:
            listed(api, worker)
        await harness.router.logged("worker connected", 2)
        listed(api, workers[0], ready=False, serving=True, terminating=True)
        await harness.knows(workers[0], lambda view: view.info.state == worker_pb2.WORKER_STATE_DRAINING)
        placed = [await harness.gateway.placed() for _ in range(4)]
        assert {placement.endpoint for placement in placed} == {workers[1].target}
        # it is watched to its end, so that what still runs there is seen
        workers[0].sample(MODEL, running=1)
        await harness.knows(workers[0], lambda view: [load.running for load in view.load.models] == [1])


async def test_who_asks_before_the_first_worker_waits(api: KubeApi) -> None:
    worker = ScriptedWorker("a")
    async with finding(api, [worker]) as harness:
        await harness.router.logged("catalog")
        (ask,) = harness.gateway.ask()
        await harness.gateway.waits(ask)
        listed(api, worker)
        assert (await harness.gateway.answer(ask)).placement.endpoint == worker.target


async def test_who_asks_when_the_last_worker_left_waits_for_its_successor(api: KubeApi) -> None:
    old, new = ScriptedWorker("old"), ScriptedWorker("new")
    async with finding(api, [old, new]) as harness:
        listed(api, old)
        await harness.router.logged("worker connected", 1)
        api.delete("old")
        await harness.router.logged("peer left", 1)
        (ask,) = harness.gateway.ask()
        await harness.gateway.waits(ask)
        listed(api, new)
        assert (await harness.gateway.answer(ask)).placement.endpoint == new.target


async def test_the_wait_for_a_successor_ends(api: KubeApi) -> None:
    worker = ScriptedWorker("a")
    async with finding(api, [worker], "--no-worker-timeout-s", "1") as harness:
        listed(api, worker)
        await harness.router.logged("worker connected", 1)
        api.delete("a")
        await harness.router.logged("peer left", 1)
        (ask,) = harness.gateway.ask(model=COLD)
        decision = await harness.gateway.answer(ask)
        assert "no worker is ready" in decision.failure.message


async def test_without_permission_it_is_not_ready_and_heals(api: KubeApi) -> None:
    worker = ScriptedWorker("a")
    api.status = 403
    async with finding(api, [worker]) as harness:
        (told,) = (await harness.router.logged("endpoints cannot be followed, the last known ones stay"))[:1]
        assert "[endpointslices]" in told["remedy"]
        await harness.router.logged("catalog", 1)
        assert not await is_ready(harness)
        api.status = 0
        listed(api, worker)
        await harness.router.ready(SERVICE)
        await harness.router.logged("worker connected", 1)


async def test_workers_stay_while_the_api_server_is_away(api: KubeApi) -> None:
    worker = ScriptedWorker("a")
    async with finding(api, [worker]) as harness:
        listed(api, worker)
        await harness.router.logged("worker connected", 1)
        api.stop()
        await harness.router.logged("endpoints cannot be followed, the last known ones stay")
        assert (await harness.gateway.placed()).endpoint == worker.target
        assert await is_ready(harness)


async def test_stopping_does_not_wait_for_the_watch(api: KubeApi) -> None:
    async with finding(api, []) as harness:
        await harness.router.ready(SERVICE)
        async with asyncio.timeout(15):
            while not api.watching:
                await asyncio.sleep(0.02)
        began = asyncio.get_running_loop().time()
        assert await harness.router.stop() == 0
        assert asyncio.get_running_loop().time() - began < 15  # a watch lasts 54 s or longer
