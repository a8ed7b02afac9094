"""A fleet that knows of each other only what an API server says, through what happens to pods."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.contract.kube_api import KubeApi, endpoint, kube_api
from tests.e2e.catalogs import simulated, write_catalog
from tests.e2e.load import Load
from tests.e2e.sim_fleet import until_served
from tokenfleet.cli.local_fleet import FleetSpec, LocalFleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

CLIENTS = 8
ROLES = ("worker", "tokenizer", "router")


@asynccontextmanager
async def discovered_fleet(path: Path, api: KubeApi) -> AsyncIterator[LocalFleet]:
    engine = simulated(profile="fixed", ttft_ms=5, itl_ms=10, max_sequences=256, mean_output_tokens=0)
    workers = ("--workers", "kubernetes://worker.fleet:grpc")
    found = {"KUBECONFIG": str(api.kubeconfig())}
    described = FleetSpec(
        state_dir=path / "state",
        workers=3,
        tokenizers=2,
        engines=("sim",),
        catalog=write_catalog(path / "catalog.yaml", engine),
        grace_s=3,
        env={"gateway": found, "router": found, "model-loader": found},
        flags={
            "router": workers,
            "model-loader": workers,
            "gateway": (
                *("--tokenizers", "kubernetes://tokenizer.fleet:grpc"),
                *("--routers", "kubernetes://router.fleet:grpc"),
                *("--zone", "kubernetes://gateway.fleet"),
            ),
        },
    )
    fleet = LocalFleet(described)
    try:
        await fleet.launch()
        for name in fleet.addresses:
            if name.startswith(ROLES):
                listed(api, fleet, name)
        api.put("gateway", endpoint("127.0.0.1", socket.gethostname(), "zone-g"), service="gateway")
        await fleet.wait_ready()
        await until_served(fleet, "sim")
        yield fleet
    finally:
        await fleet.stop()


def listed(api: KubeApi, fleet: LocalFleet, name: str, **conditions: bool) -> None:
    """A slice each, since on one host only the ports differ."""
    host, _, port = fleet.addresses[name].rpartition(":")
    role = next(role for role in ROLES if name.startswith(role))
    api.put(name, endpoint(host, name, "", **conditions), service=role, port=int(port))


async def replace(fleet: LocalFleet, api: KubeApi, name: str, load: Load) -> None:
    """What a cluster does with a pod: it says that it goes, ends it, takes it off the list, has another."""
    listed(api, fleet, name, ready=False, serving=True, terminating=True)
    assert await fleet.processes[name].stop(fleet.spec.grace_s), f"{name} had to be killed"
    api.delete(name)
    await load.answered(CLIENTS)
    fleet.processes[name].start()
    await fleet.processes[name].wait_live()
    listed(api, fleet, name, ready=False)
    async with asyncio.timeout(60):
        await fleet.processes[name].wait_ready()
    listed(api, fleet, name)
    await load.answered(CLIENTS)


async def test_pods_are_replaced_and_the_api_server_goes_away_unnoticed(tmp_path: Path) -> None:
    with kube_api(tmp_path / "account") as api:
        async with discovered_fleet(tmp_path, api) as fleet:
            load = Load(lambda: fleet.http_url, "sim")
            await load.learn()
            async with load.running(CLIENTS):
                for name in ("worker-0", "worker-1", "worker-2", "tokenizer-0", "tokenizer-1"):
                    await replace(fleet, api, name, load)
                api.stop()
                await load.answered(4 * CLIENTS)
                api.start()
                await replace(fleet, api, "worker-0", load)
            assert load.lost == []
            log = fleet.log("gateway").read_text()
            assert "own zone" in log
            assert "zone-g" in log
