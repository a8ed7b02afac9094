"""Each component is stopped in its usual order and started again under load, and no client can tell."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.contract.service_process import ServiceProcess, launch
from tests.e2e.load import Load
from tests.e2e.sim_fleet import sim_fleet
from tests.e2e.streams import chat_body
from tokenfleet.cli.local_fleet import LocalFleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

CLIENTS = 8
# Between a gateway's SIGTERM and the moment when the last load balancer has heard of it.
LAG_S = 0.5


async def restart(fleet: LocalFleet, name: str, load: Load) -> None:
    process = fleet.processes[name]
    assert await process.stop(fleet.spec.grace_s), f"{name} had to be killed"
    process.start()
    async with asyncio.timeout(60):
        await process.wait_ready()
    await load.answered(2 * CLIENTS)


async def test_workers_tokenizers_router_and_loader_restart_unnoticed(tmp_path: Path) -> None:
    async with sim_fleet(tmp_path, itl_ms=10) as fleet:
        load = Load(lambda: fleet.http_url, "sim")
        await load.learn()
        async with load.running(CLIENTS):
            await load.answered(CLIENTS)
            for role in ("worker", "tokenizer", "router", "model-loader"):
                for name in [name for name in fleet.processes if name.startswith(role)]:
                    await restart(fleet, name, load)
        assert load.lost == []


class Balancer:
    """Spreads requests over gateways, and learns late which of them still take any."""

    def __init__(self) -> None:
        self.endpoints: list[str] = []
        self._next = 0

    def choose(self) -> str:
        self._next += 1
        return self.endpoints[self._next % len(self.endpoints)]

    async def replace(self, old: ServiceProcess, new: ServiceProcess) -> None:
        """A rolling update's step: the new one serves, then the old one is told to go."""
        self.endpoints.append(_url(new))
        old.process.terminate()
        await asyncio.sleep(LAG_S)
        self.endpoints.remove(_url(old))
        assert await old.ended() == 0


async def replace_both_gateways(path: Path, *flags: str) -> Load:
    """Two gateways under load are replaced one after the other."""
    async with sim_fleet(path, itl_ms=10) as fleet, gateways(fleet, 4, *flags) as all_of_them:
        balancer = Balancer()
        balancer.endpoints = [_url(gateway) for gateway in all_of_them[:2]]
        load = Load(balancer.choose, "sim")
        await load.learn()
        async with load.running(CLIENTS):
            for old, new in zip(all_of_them[:2], all_of_them[2:], strict=True):
                await load.answered(2 * CLIENTS)
                await balancer.replace(old, new)
            await load.answered(2 * CLIENTS)
    return load


async def test_gateways_are_replaced_unnoticed(tmp_path: Path) -> None:
    load = await replace_both_gateways(tmp_path, "--shutdown-delay-s", "1.5")
    assert load.lost == []


async def test_without_the_delay_the_balancers_lag_would_lose_requests(tmp_path: Path) -> None:
    """Were there nothing to lose, the test above would say nothing."""
    load = await replace_both_gateways(tmp_path, "--shutdown-delay-s", "0")
    assert load.lost


async def test_a_gateway_that_leaves_sends_its_clients_elsewhere(tmp_path: Path) -> None:
    """A client that keeps its connections would otherwise stay until the moment they are cut."""
    async with sim_fleet(tmp_path) as fleet, gateways(fleet, 1, "--shutdown-delay-s", "2") as (gateway,):
        async with httpx.AsyncClient(base_url=_url(gateway), timeout=30) as client:
            body = chat_body("sim", "Tell me a story", 4)
            before = await client.post("/v1/chat/completions", json=body)
            gateway.process.terminate()
            await gateway.logged("not ready, still accepting")
            readiness = await client.get("/health/ready")
            after = await client.post("/v1/chat/completions", json=body)
        assert (before.status_code, after.status_code) == (200, 200)
        assert "connection" not in before.headers
        assert after.headers["connection"] == "close"
        assert (readiness.status_code, readiness.json()["accepting"]) == (503, False)


@asynccontextmanager
async def gateways(fleet: LocalFleet, count: int, *flags: str) -> AsyncIterator[list[ServiceProcess]]:
    """More gateways in front of the fleet, ready."""
    addresses = fleet.addresses
    peers = {
        "--tokenizers": ",".join(
            address for name, address in addresses.items() if name.startswith("tokenizer")
        ),
        "--routers": addresses["router"],
        "--loader": addresses["model-loader"],
    }
    named = [part for flag in peers.items() for part in flag]
    listening = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    made = [await launch("gateway", *listening, *named, *flags) for _ in range(count)]
    try:
        for gateway in made:
            await gateway.logged("readiness", catalog=True, tokenizers=True, router=True)
        yield made
    finally:
        for gateway in made:
            await gateway.stop()


def _url(gateway: ServiceProcess) -> str:
    return next(f"http://127.0.0.1:{log['http']}" for log in gateway.log if log["event"] == "serving")
