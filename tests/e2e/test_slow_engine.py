"""One engine of three becomes ten times slower, and nobody is told: the router sees it and goes round it."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.e2e.load import Load
from tests.e2e.sim_fleet import scrape, sim_fleet
from tokenfleet.cli.local_fleet import LocalFleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

CLIENTS = 12
AT_STEP = 200
# In the client's zone: what is asked of it before is at least its share.
VICTIM = "worker-0"
WORKERS = (VICTIM, "worker-1", "worker-2")


async def told(fleet: LocalFleet, worker: str, name: str) -> float:
    return await scrape(f"http://{fleet.metrics_addresses[worker]}/metrics", name)


async def requests(fleet: LocalFleet) -> dict[str, float]:
    return {name: await told(fleet, name, "tokenfleet_worker_requests_total") for name in WORKERS}


async def share(fleet: LocalFleet, load: Load, answers: int) -> float:
    """Of the requests that ended meanwhile, the victim's part."""
    before = await requests(fleet)
    await load.answered(answers)
    ended = {name: count - before[name] for name, count in (await requests(fleet)).items()}
    return ended[VICTIM] / sum(ended.values())


async def until_slow(fleet: LocalFleet) -> None:
    """Waits for steps behind the one at which it became slow."""
    async with asyncio.timeout(60):
        while await told(fleet, VICTIM, "tokenfleet_worker_step_seconds_count") < AT_STEP + 20:
            await asyncio.sleep(0.1)


async def test_a_slow_engine_is_asked_less(tmp_path: Path) -> None:
    faults = {"faults": [{"kind": "slow_down", "at_step": AT_STEP, "factor": 10}]}
    flags = {VICTIM: ("--engine-arguments", json.dumps({"sim": faults}))}
    async with sim_fleet(tmp_path, itl_ms=15, flags=flags) as fleet:
        load = Load(lambda: fleet.http_url, "sim")
        await load.learn()
        async with load.running(CLIENTS):
            await until_slow(fleet)
            await load.answered(2 * CLIENTS)
            slow = await share(fleet, load, 10 * CLIENTS)
        assert load.lost == []
        assert slow < 0.1, f"a third of the engines, ten times slower, was asked {slow:.0%}"
