"""An engine of three fails in each way there is, under load: its worker lives on, and no client can tell."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.judging import disagreements
from tests.e2e.sim_fleet import scrape, sim_fleet, until_served
from tests.e2e.streams import Answered, chat
from tokenfleet.cli.local_fleet import LocalFleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

STREAMS = 60
TOKENS = 100
PATIENCE_S = 60
# So late that the undisturbed run, which takes about 150 steps, is over by then, and so early that it
# strikes in one of the next few.
AT_STEP = 600
VICTIM = "worker-0"


def faulty(kind: str, **more: Any) -> dict[str, tuple[str, ...]]:
    """Flags that make one worker's engine fail."""
    arguments = {
        "faults": [{"kind": kind, "at_step": AT_STEP, **more}],
        "stall_least_s": 0.8,
    }
    return {VICTIM: ("--engine-arguments", json.dumps({"sim": arguments}))}


async def ask_all(fleet: LocalFleet) -> list[Answered]:
    prompts = [f"Tell me story number {number}" for number in range(STREAMS)]
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.gather(*(chat(fleet.http_url, "sim", prompt, TOKENS) for prompt in prompts))


async def told(fleet: LocalFleet, name: str) -> float:
    return await scrape(f"http://{fleet.metrics_addresses[VICTIM]}/metrics", name)


@pytest.mark.parametrize(
    ("kind", "cause", "reason"),
    [
        ("crash", "died", "engine_failed"),
        ("out_of_memory", "out_of_memory", "out_of_memory"),
        ("wedge", "wedged", "engine_failed"),
    ],
)
async def test_an_engines_failure_goes_unnoticed(tmp_path: Path, kind: str, cause: str, reason: str) -> None:
    async with sim_fleet(tmp_path, itl_ms=20, flags=faulty(kind)) as fleet:
        undisturbed = await ask_all(fleet)
        reference = {answer.prompt: answer.text for answer in undisturbed}
        assert not disagreements(reference, undisturbed, TOKENS)
        restarts = f'tokenfleet_worker_engine_restarts_total{{cause="{cause}"}}'
        assert await told(fleet, "tokenfleet_worker_engine_restarts_total") == 0, "it failed too early"
        process = fleet.processes[VICTIM].pid
        for _ in range(10):
            assert disagreements(reference, await ask_all(fleet), TOKENS) == []
            if await told(fleet, restarts):
                break
        assert await told(fleet, restarts) == 1
        lost = await told(fleet, f'tokenfleet_worker_requests_total{{outcome="{reason}"}}')
        assert lost > 0, "nothing ran on the engine when it failed"
        await serves_again(fleet)
        assert fleet.processes[VICTIM].pid == process, "the engine's death was the worker's"
        assert disagreements(reference, await ask_all(fleet), TOKENS) == []


async def serves_again(fleet: LocalFleet) -> None:
    """Waits until new tokens come from the engine that failed."""
    before = await told(fleet, "tokenfleet_worker_tokens_total")
    async with asyncio.timeout(PATIENCE_S):
        while await told(fleet, "tokenfleet_worker_tokens_total") <= before + 1:  # one is the canary's
            await until_served(fleet, "sim")
