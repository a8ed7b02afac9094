"""A worker whose engine dies, runs out of memory or is wedged: what it tells, and that it comes back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.contract.worker_process import TIMEOUT_S, Gateway, WorkerProcess, running_worker, spec
from tokenfleet.v1 import common_pb2, worker_pb2

State = worker_pb2.ResidentModel
FAILED = common_pb2.FINISH_REASON_FAILED
PROMPT = range(40)
FAST: dict[str, Any] = {"profile": "fixed", "ttft_ms": 2, "itl_ms": 2, "mean_output_tokens": 0}


@asynccontextmanager
async def worker_with(*faults: dict[str, Any], **arguments: Any) -> AsyncIterator[WorkerProcess]:
    entry = spec("sim", faults=list(faults), **FAST, restart_s=0.1, stall_least_s=0.4, **arguments)
    async with running_worker("--name", "w", "--engines", "sim") as worker:
        answers = await worker.load(entry)
        assert answers[-1].progress.stage == common_pb2.LoadProgress.STAGE_READY, answers[-1]
        yield worker


async def until(worker: WorkerProcess, holds: Callable[[State], bool]) -> State:
    """The first description of the model for which that holds."""
    call = worker.watch(min_interval_ms=1)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            async for response in call:
                for model in response.info.models:
                    if holds(model):
                        return model
    finally:
        call.cancel()
    raise AssertionError("the worker stopped telling")


async def resumed(gateway: Gateway, ids: list[int], tokens: int) -> list[int]:
    """The rest of an answer that broke off, from the same worker."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            stream = await gateway.complete(PROMPT, tokens - len(ids), generated=ids, attempt=2)
            assert stream.terminal is not None
            if stream.terminal.finish_reason != FAILED:
                return stream.ids
            assert stream.terminal.failure.reason == common_pb2.REASON_NOT_RESIDENT
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("crash", common_pb2.REASON_ENGINE_FAILED),
        ("out_of_memory", common_pb2.REASON_OUT_OF_MEMORY),
        ("wedge", common_pb2.REASON_ENGINE_FAILED),
    ],
)
async def test_it_tells_why_and_goes_on(kind: str, reason: int) -> None:
    async with worker_with() as undisturbed:
        gateway = await undisturbed.connect()
        whole = (await gateway.complete(PROMPT, 60)).ids
    async with worker_with({"kind": kind, "at_step": 30}) as worker:
        gateway = await worker.connect()
        stream = gateway.submit(PROMPT, 60)
        down = asyncio.create_task(until(worker, lambda model: model.HasField("failure")))
        terminal = await stream.ended()
        assert (terminal.finish_reason, terminal.failure.reason) == (FAILED, reason)
        assert len(stream.ids) == 28, "the load's canary made the first step"
        told = await down
        assert (told.state, told.failure.reason) == (State.STATE_LOADING, reason)
        assert stream.ids + await resumed(gateway, stream.ids, 60) == whole
        back = await until(worker, lambda model: model.state == State.STATE_READY)
        assert not back.HasField("failure")
        assert gateway.problems == []


async def test_after_a_lack_of_memory_the_cache_is_smaller_but_never_too_small() -> None:
    faults = [{"kind": "out_of_memory", "at_step": step} for step in (10, 20)]
    async with worker_with(*faults, kv_blocks=700) as worker:  # one full context takes 512 of them
        gateway = await worker.connect()
        seen = []
        for _ in faults:
            before = await until(worker, lambda model: model.state == State.STATE_READY)
            seen.append(before.kv_blocks_total)
            await gateway.complete(PROMPT, 30)
            await until(worker, lambda model: model.kv_blocks_total != seen[-1] or len(seen) > 1)
            await until(worker, lambda model: model.state == State.STATE_READY)
        seen.append((await until(worker, lambda model: True)).kv_blocks_total)
        assert seen == [700, 525, 512]


async def test_an_engine_that_fails_its_canary_is_not_used() -> None:
    async with running_worker("--name", "w", "--engines", "sim") as worker:
        entry = spec("sim", faults=[{"kind": "crash", "at_step": 1}], **FAST)
        answers = await worker.load(entry)
        assert answers[-1].progress.stage == common_pb2.LoadProgress.STAGE_FAILED
        assert answers[-1].progress.failure.reason == common_pb2.REASON_ENGINE_FAILED


async def test_a_restarted_engine_that_fails_its_canary_is_restarted_again() -> None:
    faults = [{"kind": "crash", "at_step": step} for step in (10, 11, 12)]
    async with worker_with(*faults) as worker:
        gateway = await worker.connect()
        broken = await gateway.complete(PROMPT, 30)
        rest = await resumed(gateway, broken.ids, 30)
        assert len(broken.ids) + len(rest) == 30
        assert sum('"engine died"' in line for line in worker.log) == 3


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ({"kind": "melt", "at_step": 3}, "faults.0.kind"),
        ({"kind": "crash"}, "faults.0.at_step"),
        ({"kind": "crash", "at_step": 3, "often": True}, "faults.0.often"),
    ],
)
async def test_a_wrong_fault_is_named(fault: dict[str, Any], complaint: str) -> None:
    async with running_worker("--name", "w", "--engines", "sim") as worker:
        answers = await worker.load(spec("sim", faults=[fault]))
        assert complaint in answers[-1].progress.failure.message


async def test_a_workers_own_arguments_come_before_the_entrys() -> None:
    own = '{"sim": {"max_sequences": 7}}'
    async with running_worker("--name", "w", "--engines", "sim", "--engine-arguments", own) as worker:
        await worker.load(spec("sim", max_sequences=3, kv_blocks=600))
        model = await until(worker, lambda model: model.state == State.STATE_READY)
        assert (model.max_sequences, model.kv_blocks_total) == (7, 600)
