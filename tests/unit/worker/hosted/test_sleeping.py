"""An engine in a child that sleeps, dies asleep, or cannot fall asleep."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import psutil
import pytest
import pytest_asyncio

from tests.unit.worker.hosted.toy_engine import TIMEOUT_S, Heard, ToyHost, generation, model
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import EngineFacts, ModelFiles, SleepCosts
from tokenfleet.worker.engines.hosted.sleeping import SleepingHostedEngine

AWAKE_BYTES, ASLEEP_BYTES = 1_000, 10


class SleepyHost(ToyHost):
    def facts(self, ready: Mapping[str, Any], memory_bytes: int) -> EngineFacts:
        del ready, memory_bytes
        return EngineFacts(
            common_pb2.Fingerprint(), 4, 1000, 100, AWAKE_BYTES, sleep=SleepCosts(ASLEEP_BYTES, 0.1)
        )


class SleepyEngine(SleepingHostedEngine):
    def host(self, model: ModelFiles) -> SleepyHost:
        self.toy = SleepyHost(model.arguments)
        return self.toy


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[SleepyEngine]:
    engine = SleepyEngine(1)
    yield engine
    await engine.unload()


def child_of_this_process() -> psutil.Process:
    (child,) = psutil.Process().children()
    return child


async def falls_asleep(engine: SleepyEngine) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with suppress(FleetError):  # while it is being started
                if await engine.call("asleep"):
                    return
            await asyncio.sleep(0.01)


async def answers(engine: SleepyEngine, heard: Heard, key: int) -> bool:
    engine.submit(generation(key, 3, 4))
    await heard.until(lambda: key in heard.finished)
    return heard.ids[key] == [4, 5, 6, 7]


async def test_asleep_it_says_what_it_gave_up_and_awake_it_answers_again(
    engine: SleepyEngine, heard: Heard
) -> None:
    await engine.load(model(), heard)
    assert await engine.sleep() == AWAKE_BYTES - ASLEEP_BYTES
    assert await engine.call("asleep")
    await engine.wake()
    assert await answers(engine, heard, 1)


async def test_one_that_dies_asleep_comes_back_asleep_and_wakes_as_ever(
    engine: SleepyEngine, heard: Heard
) -> None:
    await engine.load(model(), heard)
    await engine.sleep()
    child_of_this_process().kill()
    await heard.until(lambda: heard.down)
    await falls_asleep(engine)
    assert heard.up == [], "nobody asked for it"
    await engine.wake()
    assert await answers(engine, heard, 1)


async def test_one_that_cannot_fall_asleep_is_killed_and_comes_back_awake(
    engine: SleepyEngine, heard: Heard
) -> None:
    await engine.load(model(trouble="insomnia"), heard)
    engine.toy.start_timeout_s = 0.2
    with pytest.raises(FleetError, match=r"sleep took longer than 0\.2 s") as caught:
        await engine.sleep()
    assert caught.value.reason == common_pb2.REASON_ENGINE_FAILED
    engine.toy.start_timeout_s = TIMEOUT_S
    await heard.until(lambda: heard.up)
    assert [cause for cause, _ in heard.down] == ["wedged"]
    assert await answers(engine, heard, 1)
