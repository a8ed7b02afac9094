"""Several models on one worker: how they leave, sleep and come back, what that does to its memory."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import psutil
import pytest

from tests.contract.worker_process import TIMEOUT_S, Gateway, WorkerProcess, running_worker, spec
from tokenfleet.runtime.errors import FleetError, from_rpc_error
from tokenfleet.v1 import common_pb2, worker_pb2

Progress = common_pb2.LoadProgress
Resident = worker_pb2.ResidentModel
Unloaded = worker_pb2.UnloadModelResponse


@pytest.fixture
async def worker() -> AsyncIterator[WorkerProcess]:
    async with running_worker("--name", "w", "--engines", "sim", "--memory-bytes", "1000") as process:
        yield process
        await process.disconnect()


def sized(name: str, size: int, **arguments: Any) -> common_pb2.ModelSpec:
    entry = spec(
        name=name, **{"profile": "fixed", "ttft_ms": 1, "itl_ms": 5, "mean_output_tokens": 0, **arguments}
    )
    entry.engines[0].weights_bytes = size
    return entry


async def load(worker: WorkerProcess, entry: common_pb2.ModelSpec) -> worker_pb2.LoadModelResponse:
    return (await worker.load(entry))[-1]


async def refused(unload: Any) -> FleetError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await unload
    return from_rpc_error(raised.value)


async def seen(worker: WorkerProcess, fits: Callable[[dict[str, Resident]], bool]) -> dict[str, Resident]:
    """The models by name, as soon as they fit."""
    call = worker.watch()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            async for response in call:
                models = {model.model: model for model in response.info.models}
                if response.HasField("info") and fits(models):
                    return models
    finally:
        call.cancel()
    raise AssertionError("the watch ended")


async def sampled(worker: WorkerProcess, name: str) -> worker_pb2.LoadSample.ModelLoad:
    sample = await worker.load_sample()
    return next(load for load in sample.models if load.model == name)


def state(name: str, wanted: "Resident.State.ValueType") -> Callable[[dict[str, Resident]], bool]:
    return lambda models: name in models and models[name].state == wanted


async def test_a_load_that_takes_its_time_says_how_far_it_is(worker: WorkerProcess) -> None:
    answer = await worker.load(sized("m", 800, load_s=0.6))
    starting = [one.progress for one in answer if one.progress.stage == Progress.STAGE_STARTING_ENGINE]
    assert {one.bytes_total for one in starting} == {800, 0} or {one.bytes_total for one in starting} == {800}
    done = [one.bytes_done for one in starting]
    assert done == sorted(done)
    assert 0 < done[-1] < 800
    assert answer[-1].progress.stage == Progress.STAGE_READY


async def test_who_comes_before_the_word_got_round_is_served_and_an_idle_unload_gives_way(
    worker: WorkerProcess,
) -> None:
    await load(worker, sized("m", 800))
    gateway = await worker.connect()
    leaving = asyncio.create_task(worker.unload(if_idle=True))
    await seen(worker, state("m", Resident.STATE_UNLOADING))
    stream = gateway.submit([1, 2, 3], 10)
    error = await refused(leaving)
    assert error.reason == common_pb2.REASON_BUSY
    terminal = await stream.ended()
    assert terminal.finish_reason == common_pb2.FINISH_REASON_LENGTH
    await seen(worker, state("m", Resident.STATE_READY))
    assert (await worker.unload(if_idle=True))[-1].stage == Unloaded.STAGE_UNLOADED


async def test_a_model_that_must_go_finishes_what_runs_and_refuses_what_comes_later() -> None:
    async with running_worker("--name", "w", "--engines", "sim") as worker:
        await load(worker, sized("m", 800))
        gateway = await worker.connect()
        running = gateway.submit([1, 2, 3], 400)
        await running.tokens(1)
        call = worker.stub.UnloadModel(worker_pb2.UnloadModelRequest(model="m"))
        draining = await anext(aiter(call))
        assert (draining.stage, draining.running) == (Unloaded.STAGE_DRAINING, 1)
        late = await gateway.complete([1], 5)
        assert late.terminal is not None
        assert late.terminal.failure.reason == common_pb2.REASON_NOT_RESIDENT
        assert (await running.ended()).finish_reason == common_pb2.FINISH_REASON_LENGTH
        await seen(worker, lambda models: not models)
        await worker.disconnect()


async def test_an_order_that_knows_less_than_the_worker_is_refused(worker: WorkerProcess) -> None:
    await load(worker, sized("m", 800))
    gateway = await worker.connect()
    await gateway.complete([1], 3)
    await gateway.complete([1], 3)
    told = await sampled(worker, "m")
    assert told.arrivals == 2
    error = await refused(worker.unload(if_idle=True, idle_ms=told.idle_ms + 60_000))
    assert error.reason == common_pb2.REASON_BUSY
    assert "ms ago" in error.message
    # an order may be under way for longer than a model was idle
    error = await refused(worker.unload(if_idle=True, arrivals=told.arrivals - 1))
    assert error.reason == common_pb2.REASON_BUSY
    assert "asked 2 times, not 1" in error.message
    await worker.unload(if_idle=True, idle_ms=told.idle_ms, arrivals=told.arrivals)


async def test_an_unload_goes_on_when_whoever_ordered_it_is_gone(worker: WorkerProcess) -> None:
    await load(worker, sized("m", 800))
    call = worker.stub.UnloadModel(worker_pb2.UnloadModelRequest(model="m", if_idle=True))
    following = asyncio.create_task(anext(aiter(call), None))
    await seen(worker, state("m", Resident.STATE_UNLOADING))
    call.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await seen(worker, lambda models: not models)


async def test_models_share_the_budget_and_one_asleep_takes_less_of_it(worker: WorkerProcess) -> None:
    entry = sized("a", 700, asleep_bytes=100, wake_s=0.05)
    first = await load(worker, entry)
    refused_load = (await load(worker, sized("b", 600))).progress.failure
    assert refused_load.reason == common_pb2.REASON_OUT_OF_MEMORY
    gateway = await worker.connect()
    awake = await gateway.complete([5, 6, 7], 8, model="a")
    models = await seen(worker, state("a", Resident.STATE_READY))
    assert "sleep" in models["a"].features
    assert (models["a"].sleep.asleep_bytes, models["a"].sleep.wake_ms) == (100, 50)
    answer = await worker.unload(model="a", if_idle=True, sleep=True)
    assert answer[-1].stage == Unloaded.STAGE_ASLEEP
    await seen(worker, state("a", Resident.STATE_ASLEEP))
    asleep = await gateway.complete([5, 6, 7], 8, model="a")
    assert asleep.terminal is not None
    assert asleep.terminal.failure.reason == common_pb2.REASON_NOT_RESIDENT
    assert (await load(worker, sized("b", 600))).progress.stage == Progress.STAGE_READY
    # there is no room to wake up in until b has left
    assert (await load(worker, entry)).progress.failure.reason == common_pb2.REASON_OUT_OF_MEMORY
    await worker.unload(model="b")
    woken = await load(worker, entry)
    assert woken.progress.stage == Progress.STAGE_READY
    assert woken.residency_epoch > first.residency_epoch
    again = await gateway.complete([5, 6, 7], 8, model="a")
    assert again.ids == awake.ids
    # what sleeps may be unloaded for good
    await worker.unload(model="a", sleep=True)
    assert (await worker.unload(model="a"))[-1].stage == Unloaded.STAGE_UNLOADED
    await seen(worker, lambda models: not models)


@pytest.mark.real_model
async def test_an_engine_dies_alone() -> None:
    """Two real engines on one worker; one is killed, and the other's stream does not notice."""
    async with running_worker("--name", "w", "--engines", "llamacpp", "--threads", "1") as worker:
        for name in ("a", "b"):
            ready = await load(worker, spec("llamacpp", name, n_parallel=2))
            assert ready.progress.stage == Progress.STAGE_READY, ready.progress.failure.message
        gateway = await worker.connect()
        prompt = list(range(100, 108))
        undisturbed = await gateway.complete(prompt, 16, model="b", sampling={"temperature": 0})
        doomed = _child_of(worker, after=0)
        stream = gateway.submit(prompt, 16, model="b", sampling={"temperature": 0})
        await stream.tokens(2)
        doomed.send_signal(signal.SIGKILL)
        await seen(worker, state("a", Resident.STATE_LOADING))
        assert (await stream.ended()).finish_reason == common_pb2.FINISH_REASON_LENGTH
        assert stream.ids == undisturbed.ids
        assert not gateway.problems
        await seen(worker, state("a", Resident.STATE_READY))
        assert await _answers(gateway, "a")
        await worker.disconnect()


def _child_of(worker: WorkerProcess, after: int) -> psutil.Process:
    """Its engines' processes, in the order in which they were started."""
    children = psutil.Process(worker.process.pid).children()
    return sorted(children, key=lambda child: child.create_time())[after]


async def _answers(gateway: Gateway, model: str) -> bool:
    stream = await gateway.complete([100, 101, 102], 2, model=model, sampling={"temperature": 0})
    return len(stream.ids) == 2


def own_memory(process: psutil.Process) -> int:
    """Without the pages of programs and libraries, which a system takes and brings back as it likes."""
    used = process.memory_info()
    return int(used.rss - getattr(used, "shared", 0))


@pytest.mark.real_model
@pytest.mark.timeout(400)
async def test_twenty_loads_and_unloads_leave_nothing_behind() -> None:
    """Neither the first load nor any later one: what it takes to load a model is given back too."""
    entry = spec("llamacpp", n_parallel=2, n_ctx=1024)
    async with running_worker("--name", "w", "--engines", "llamacpp", "--threads", "1") as worker:
        process = psutil.Process(worker.process.pid)
        await worker.load_sample()  # it answers: it has started
        started_with, occupied = process.memory_info().rss, [own_memory(process)]
        for _ in range(20):
            ready = await load(worker, entry)
            assert ready.progress.stage == Progress.STAGE_READY, ready.progress.failure.message
            (gone,) = await worker.unload(if_idle=True, residency_epoch=ready.residency_epoch)
            assert gone.stage == Unloaded.STAGE_UNLOADED
            assert gone.freed_bytes > 100 << 20
            assert not gone.missing_bytes
            assert not process.children()
            occupied.append(own_memory(process))
        assert occupied[-1] - occupied[0] < 0.05 * started_with, [size >> 10 for size in occupied]
        await worker.disconnect()
