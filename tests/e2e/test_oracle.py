"""The oracle: workers are killed at random moments, and no client can tell.

The simulated engine's next id is a hash of all ids so far, drawn from a real vocabulary with its split
characters, so a single lost, repeated or altered token changes everything that follows.
"""

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.judging import disagreements
from tests.e2e.sim_fleet import sim_fleet, until_served
from tests.e2e.streams import Answered, chat
from tokenfleet.cli.local_fleet import LocalFleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

STREAMS = 200
TOKENS = 120
KILLS = 6
SABOTAGE = Path(__file__).parent / "sabotage"


async def ask_all(fleet: LocalFleet, streams: int = STREAMS, tokens: int = TOKENS) -> list[Answered]:
    prompts = [f"Tell me story number {number}" for number in range(streams)]
    return await asyncio.gather(*(chat(fleet.http_url, "sim", prompt, tokens) for prompt in prompts))


async def kill_at_random(fleet: LocalFleet, seed: int, answering: asyncio.Task[list[Answered]]) -> int:
    """SIGKILLs a random worker again and again while the answers stream; counts the kills."""
    dice = random.Random(seed)
    workers = [name for name in fleet.processes if name.startswith("worker")]
    kills = 0
    while kills < KILLS and not answering.done():
        await asyncio.sleep(dice.uniform(0.1, 0.6))
        name = dice.choice(workers)
        if answering.done():
            break
        with suppress(ProcessLookupError):  # of the last time it is dead still
            fleet.kill(name)
            kills += 1
    return kills


async def test_no_stream_notices_that_its_worker_was_killed(tmp_path: Path) -> None:
    async with sim_fleet(tmp_path) as fleet:
        undisturbed = await ask_all(fleet)
        reference = {answer.prompt: answer.text for answer in undisturbed}
        assert not disagreements(reference, undisturbed, TOKENS)
        assert len(set(reference.values())) == STREAMS, "answers must tell one stream from another"
        for seed in (1, 2):
            answering = asyncio.create_task(ask_all(fleet))
            kills = await kill_at_random(fleet, seed, answering)
            answers = await answering
            assert kills >= 3, "the streams were over before the workers were killed"
            assert disagreements(reference, answers, TOKENS) == []
            await until_served(fleet, "sim")


@pytest.mark.parametrize("what", ["gateway_drops_a_token", "assembler_repeats_a_character"])
async def test_the_oracle_sees_a_seam(tmp_path: Path, what: str) -> None:
    """Breaks the resume on purpose: were the oracle blind, this would pass unnoticed."""
    sabotaged = {"PYTHONPATH": str(SABOTAGE / what)}
    async with sim_fleet(tmp_path, env={"gateway": sabotaged, "worker": sabotaged}) as fleet:
        undisturbed = await ask_all(fleet, streams=30)
        reference = {answer.prompt: answer.text for answer in undisturbed}
        assert not disagreements(reference, undisturbed, TOKENS)
        answering = asyncio.create_task(ask_all(fleet, streams=30))
        kills = await kill_at_random(fleet, 3, answering)
        assert kills
        assert disagreements(reference, await answering, TOKENS), f"{kills} kills, and nothing was noticed"
