"""The life of an engine in a child process, on one that only counts."""

import asyncio
import os
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from tests.unit.worker.hosted.toy_engine import TIMEOUT_S, Heard, ToyEngine, generation, model
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[ToyEngine]:
    engine = ToyEngine(1)
    yield engine
    await engine.unload()


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_sequences_run_side_by_side_and_end_in_their_own_ways(engine: ToyEngine, heard: Heard) -> None:
    facts = await engine.load(model(), heard)
    assert engine.toy.ready["toes"] == 10
    assert facts.memory_bytes > 1_000_000
    engine.submit(generation(1, 20))
    engine.submit(generation(2, 96))
    engine.submit(generation(3, 13))
    assert engine.load_now().queued_prefill_tokens == 6
    await heard.until(lambda: len(heard.finished) == 3)
    assert heard.ids == {1: [21, 22, 23, 24, 25], 2: [97, 98, 99]}
    assert heard.finished[1].reason == common_pb2.FINISH_REASON_LENGTH
    assert heard.finished[2].reason == common_pb2.FINISH_REASON_STOP
    failure = heard.finished[3].failure
    assert failure is not None
    assert (failure.reason, failure.message) == (
        common_pb2.REASON_INVALID_ARGUMENT,
        "engine toy: 13 brings bad luck",
    )
    assert {record.text for _, record in heard.logprobs} >= {"21", "97"}
    assert engine.steps.recorded >= 5
    assert engine.load_now() == (0, 0, 0, 0, 0)


async def test_an_aborted_sequence_says_nothing_more(engine: ToyEngine, heard: Heard) -> None:
    await engine.load(model(), heard)
    engine.submit(generation(1, 200, 90))
    await heard.until(lambda: heard.ids)
    assert engine.load_now() == (1, 0, 3, 0, 7)
    record = engine.abort(1)
    assert record is not None
    assert record.reason == common_pb2.FINISH_REASON_CANCELLED
    assert engine.abort(1) is None
    engine.submit(generation(2, 20))
    await heard.until(lambda: 2 in heard.finished)
    assert 1 not in heard.finished
    assert engine.load_now().running == 0


async def test_a_method_is_called_between_steps(engine: ToyEngine, heard: Heard) -> None:
    await engine.load(model(), heard)
    engine.submit(generation(1, 200, 50))
    assert await engine.call("double", 21) == 42
    with pytest.raises(FleetError, match="TypeError"):
        await engine.call("double")


@pytest.mark.parametrize(
    ("trouble", "cause", "reason", "words"),
    [
        ("crash", "died", common_pb2.REASON_ENGINE_FAILED, "signal 6"),
        ("error", "died", common_pb2.REASON_ENGINE_FAILED, "ValueError: this cannot be"),
        ("memory", "out_of_memory", common_pb2.REASON_OUT_OF_MEMORY, "no room for another block"),
    ],
)
async def test_a_death_is_typed_and_followed_by_another_life(
    engine: ToyEngine, heard: Heard, trouble: str, cause: str, reason: int, words: str
) -> None:
    await engine.load(model(trouble=trouble, at_step=3), heard)
    engine.submit(generation(1, 20))
    await heard.until(lambda: heard.down)
    assert heard.ids[1] == [21, 22]
    failure = heard.finished[1].failure
    assert failure is not None
    assert failure.reason == reason
    assert words in failure.message
    assert heard.down == [(cause, failure)]
    with pytest.raises(FleetError, match="being restarted"):
        engine.submit(generation(2, 20))
    await heard.until(lambda: heard.up)
    facts = heard.up[0]
    assert facts is not None
    assert facts.kv_blocks_total == (50 if trouble == "memory" else 100)
    engine.submit(generation(3, 97))
    await heard.until(lambda: 3 in heard.finished)
    assert heard.ids[3] == [98, 99]


async def test_an_engine_that_makes_no_step_is_killed(engine: ToyEngine, heard: Heard) -> None:
    await engine.load(model(trouble="hang", at_step=2, stall_timeout_s=0.5), heard)
    engine.submit(generation(1, 20))
    await heard.until(lambda: heard.down)
    assert heard.down[0][0] == "wedged"
    assert heard.finished[1].failure is not None


async def test_a_failed_start_has_the_engine_s_own_words(engine: ToyEngine, heard: Heard) -> None:
    with pytest.raises(FleetError, match="engine toy: RuntimeError: no toes") as caught:
        await engine.load(model(trouble="start"), heard)
    assert caught.value.reason == common_pb2.REASON_LOAD_FAILED


async def test_what_the_child_started_ends_with_it(engine: ToyEngine, heard: Heard) -> None:
    await engine.load(model(trouble="fork"), heard)
    grandchild = engine.toy.ready["grandchild"]
    assert alive(grandchild)
    engine.restart("canary")
    await heard.until(lambda: heard.down)
    assert heard.down[0][0] == "canary"
    async with asyncio.timeout(TIMEOUT_S):
        while alive(grandchild):  # it was sent the same signal, and may take a moment longer to die
            await asyncio.sleep(0.01)


async def test_unloading_ends_the_child_and_measures_what_it_held(engine: ToyEngine, heard: Heard) -> None:
    await engine.load(model(trouble="fork"), heard)
    child = psutil.Process(os.getpid()).children(recursive=True)
    assert await engine.unload() > 1_000_000
    gone, left = await asyncio.to_thread(psutil.wait_procs, child, TIMEOUT_S)
    assert (len(gone), left) == (2, [])
    assert heard.down == []
