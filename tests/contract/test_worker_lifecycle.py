"""The worker's control plane over the wire: loads and unloads, what watchers see, how it stops."""

import asyncio
import itertools
import signal
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.contract.worker_process import TIMEOUT_S, WorkerProcess, running_worker, spec
from tokenfleet.runtime.errors import from_rpc_error
from tokenfleet.v1 import common_pb2, worker_pb2

READY = common_pb2.LoadProgress.STAGE_READY
FAILED = common_pb2.LoadProgress.STAGE_FAILED
SERVING = health_pb2.HealthCheckResponse.SERVING


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[WorkerProcess]:
    async with running_worker("--name", "w", "--zone", "zone-b", "--engines", "sim") as process:
        yield process


@pytest_asyncio.fixture(loop_scope="module")
async def worker(shared: WorkerProcess) -> AsyncIterator[WorkerProcess]:
    """The shared one, which holds no model afterwards."""
    yield shared
    if (await info_when(shared, lambda _: True)).models:
        await shared.unload()
    await shared.disconnect()


@pytest_asyncio.fixture(loop_scope="module")
async def own_worker() -> AsyncIterator[WorkerProcess]:
    """For tests that end its life."""
    async with running_worker("--name", "w", "--engines", "sim", "--grace-s", "0.3") as process:
        yield process
        await process.disconnect()


def quick(**arguments: Any) -> common_pb2.ModelSpec:
    return spec(profile="fixed", ttft_ms=1, itl_ms=5, mean_output_tokens=0, **arguments)


async def info_when(worker: WorkerProcess, wanted: Any) -> worker_pb2.WorkerInfo:
    """The first description that fits."""
    call = worker.watch()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            async for response in call:
                if response.HasField("info") and wanted(response.info):
                    return response.info
    finally:
        call.cancel()
    raise AssertionError("the watch ended")


async def test_a_load_reports_progress_and_an_epoch_and_a_second_one_is_ready_at_once(
    worker: WorkerProcess,
) -> None:
    first = await worker.load(quick())
    assert first[0].progress.stage == common_pb2.LoadProgress.STAGE_QUEUED
    assert first[-1].progress.stage == READY
    assert first[-1].residency_epoch > 0
    second = await worker.load(quick())
    assert second[-1].progress.stage == READY
    assert second[-1].residency_epoch == first[-1].residency_epoch
    info = await info_when(worker, lambda _: True)
    assert (info.name, info.zone, list(info.engines)) == ("w", "zone-b", ["sim"])
    (model,) = info.models
    assert model.state == worker_pb2.ResidentModel.STATE_READY
    assert model.context_length == 8192
    assert model.fingerprint.engine == "sim"
    assert model.residency_epoch == first[-1].residency_epoch


async def test_callers_of_one_load_share_it(worker: WorkerProcess) -> None:
    answers = await asyncio.gather(*(worker.load(quick()) for _ in range(5)))
    assert len({answer[-1].residency_epoch for answer in answers}) == 1


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (spec(itl_msec=5), "argument itl_msec is unknown; did you mean itl_ms?"),
        (spec(itl_ms="fast"), "argument itl_ms"),
        (spec("llamacpp"), "this worker hosts sim"),
        (spec(kv_blocks=3), "kv_blocks"),
    ],
)
async def test_a_load_that_cannot_work_says_why_and_may_be_tried_again(
    worker: WorkerProcess, entry: common_pb2.ModelSpec, says: str
) -> None:
    answer = await worker.load(entry)
    assert answer[-1].progress.stage == FAILED
    assert says in answer[-1].progress.failure.message
    assert answer[-1].progress.failure.reason == common_pb2.REASON_LOAD_FAILED
    assert (await worker.load(quick()))[-1].progress.stage == READY


async def test_a_model_too_large_for_the_budget_is_refused() -> None:
    async with running_worker("--name", "w", "--engines", "sim", "--memory-bytes", "1000") as worker:
        entry = quick()
        entry.engines[0].weights_bytes = 900
        entry.engines[0].kv_bytes = 200
        failure = (await worker.load(entry))[-1].progress.failure
        assert failure.reason == common_pb2.REASON_OUT_OF_MEMORY
        assert "1100 bytes" in failure.message


async def test_an_idle_unload_spares_a_busy_model_and_an_old_epoch_is_fenced_off(
    worker: WorkerProcess,
) -> None:
    epoch = (await worker.load(quick()))[-1].residency_epoch
    gateway = await worker.connect()
    stream = gateway.submit([1], 1_000, residency_epoch=epoch)
    await stream.tokens(1)
    with pytest.raises(grpc.aio.AioRpcError) as busy:
        await worker.unload(if_idle=True)
    assert from_rpc_error(busy.value).reason == common_pb2.REASON_BUSY
    with pytest.raises(grpc.aio.AioRpcError) as fenced:
        await worker.unload(residency_epoch=epoch - 1)
    assert from_rpc_error(fenced.value).reason == common_pb2.REASON_NOT_RESIDENT
    gateway.cancel(stream)
    await stream.ended()
    answer = await worker.unload(if_idle=True, residency_epoch=epoch)
    assert answer[-1].stage == worker_pb2.UnloadModelResponse.STAGE_UNLOADED
    again = (await worker.load(quick()))[-1].residency_epoch
    assert again > epoch
    refused = await gateway.complete([1], 5, residency_epoch=epoch)
    assert refused.terminal is not None
    assert refused.terminal.failure.reason == common_pb2.REASON_NOT_RESIDENT


async def test_every_watcher_sees_every_admitted_reservation_and_the_steps(worker: WorkerProcess) -> None:
    await worker.load(quick())
    gateway = await worker.connect()
    calls = [worker.watch(min_interval_ms=interval) for interval in (10, 100)]
    watchers = [aiter(call) for call in calls]
    for watcher in watchers:
        assert (await anext(watcher)).HasField("info")
    wanted = {f"r{number}" for number in range(20)}
    for name in sorted(wanted):
        await gateway.complete([1], 3, reservation_id=name)
    for watcher in watchers:
        admitted: list[str] = []
        sequences: list[int] = []
        steps = 0
        async with asyncio.timeout(TIMEOUT_S):
            while len(admitted) < len(wanted):
                sample = (await anext(watcher)).load
                admitted += sample.admitted_ids
                sequences.append(sample.sequence)
                steps += sum(len(model.step_us) for model in sample.models)
        assert sorted(admitted) == sorted(wanted)
        assert sequences == sorted(set(sequences))
        assert steps > 0
    for call in calls:
        call.cancel()


async def test_a_quiet_worker_is_heard_every_second_and_a_busy_one_not_too_often(
    worker: WorkerProcess,
) -> None:
    await worker.load(quick())
    call = worker.watch(min_interval_ms=100)
    watcher = aiter(call)
    loop = asyncio.get_running_loop()
    await anext(watcher)
    began = loop.time()
    await anext(watcher)
    assert 0.9 < loop.time() - began < 1.5
    gateway = await worker.connect()
    times = []
    for number in range(6):
        await gateway.complete([number], 1)
        if number % 2:
            await anext(watcher)
            times.append(loop.time())
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) > 0.09
    call.cancel()


async def test_a_drain_finishes_what_it_can_and_hands_over_the_rest(own_worker: WorkerProcess) -> None:
    await own_worker.load(quick())
    gateway = await own_worker.connect()
    short, long = gateway.submit([1], 20), gateway.submit([2], 8_000)
    await long.tokens(1)
    responses = [one async for one in own_worker.stub.Drain(worker_pb2.DrainRequest(grace_ms=400))]
    assert responses[0].running == 2
    assert responses[-1].done
    assert short.terminal is not None
    assert long.terminal is not None
    assert short.terminal.finish_reason == common_pb2.FINISH_REASON_LENGTH
    assert long.terminal.failure.reason == common_pb2.REASON_DRAINING
    assert gateway.draining[0].grace_ms == 400
    refused = await gateway.complete([3], 5)
    assert refused.terminal is not None
    assert refused.terminal.failure.reason == common_pb2.REASON_DRAINING
    info = await info_when(own_worker, lambda _: True)
    assert info.state == worker_pb2.WORKER_STATE_DRAINING


async def test_sigterm_tells_everybody_hands_over_and_ends_cleanly(own_worker: WorkerProcess) -> None:
    await own_worker.load(quick())
    gateway = await own_worker.connect()
    stream = gateway.submit([2], 8_000)
    await stream.tokens(1)
    watcher = aiter(own_worker.watch())
    await anext(watcher)
    own_worker.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(TIMEOUT_S):
        async for response in watcher:
            if response.info.state == worker_pb2.WORKER_STATE_DRAINING:
                break
    await stream.ended()
    assert stream.terminal is not None
    assert stream.terminal.failure.reason == common_pb2.REASON_DRAINING
    async with asyncio.timeout(TIMEOUT_S):
        assert await own_worker.process.wait() == 0
        await gateway.gone.wait()


async def test_health_tells_live_from_ready(own_worker: WorkerProcess) -> None:
    health: Any = health_pb2_grpc.HealthStub(own_worker.channel)

    async def status(service: str) -> int:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        return int(answer.status)

    assert await status("") == SERVING
    assert await status("tokenfleet.v1.Worker") == SERVING
    _ = [one async for one in own_worker.stub.Drain(worker_pb2.DrainRequest(grace_ms=1))]
    assert await status("") == SERVING
    assert await status("tokenfleet.v1.Worker") != SERVING


async def test_metrics_have_the_promised_names(worker: WorkerProcess) -> None:
    await worker.load(quick())
    gateway = await worker.connect()
    await gateway.complete([1], 5)
    listens = next(line for line in worker.log if "worker listens" in line)
    metrics_port = int(listens.split('"metrics_port": ')[1].split(",")[0])

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(scrape)
    for name in (
        'tokenfleet_worker_requests_running{model="m"} 0',
        'tokenfleet_worker_requests_waiting{model="m"} 0',
        'tokenfleet_worker_kv_cache_usage_ratio{model="m"} 0',
        "tokenfleet_worker_step_seconds_bucket",
        'tokenfleet_worker_memory_bytes{model="m"}',
        "# TYPE tokenfleet_worker_engine_restarts_total counter",
        "# TYPE tokenfleet_worker_tokens_total counter",
        'tokenfleet_worker_requests_total{outcome="length"}',
    ):
        assert name in text


async def test_what_a_prefix_cache_holds_is_told_whole_first_and_then_as_it_changes(
    worker: WorkerProcess,
) -> None:
    await worker.load(quick())
    gateway = await worker.connect()
    first, second = [11, 12, 13], [11, 12, 14]  # block hashes
    await gateway.complete(range(100, 148), 2, block_hashes=first)
    call = worker.watch(min_interval_ms=1, cache_events=True)
    held: set[int] = set()
    sequence = -1
    asked = False
    async with asyncio.timeout(TIMEOUT_S):
        async for response in call:
            if response.HasField("cache_snapshot"):
                snapshot = response.cache_snapshot
                assert snapshot.last
                held, sequence = set(snapshot.hashes), snapshot.sequence
                assert held == set(first)
                assert list(snapshot.parents) == [0, 11, 12]
            for event in response.cache_events:
                assert event.sequence == sequence + 1, "nothing is missing"
                sequence = event.sequence
                held.update(event.stored)
            if held == set(first) and not asked:
                asked = True
                await gateway.complete(range(200, 248), 2, block_hashes=second)
            if held == {*first, *second}:
                break
    call.cancel()
