"""What only an engine in a process of its own can get wrong: its death, its memory, its untold features."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from tests.contract.worker_process import TIMEOUT_S, WorkerProcess, running_worker, spec
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.engines.llamacpp.child import log_flusher

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.real_model]

FULL = {"temperature": 0, "ignore_eos": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[WorkerProcess]:
    """Room for 240 KV tokens in two slots."""
    async with running_worker("--name", "w", "--engines", "llamacpp") as process:
        answer = await process.load(spec("llamacpp", n_parallel=2, n_ctx=256))
        assert answer[-1].progress.stage == common_pb2.LoadProgress.STAGE_READY, answer[-1]
        yield process
        await process.disconnect()


def child_of(worker: WorkerProcess) -> psutil.Process:
    (child,) = psutil.Process(worker.process.pid).children(recursive=True)
    return child


async def test_logprobs_come_with_their_alternatives(worker: WorkerProcess) -> None:
    gateway = await worker.connect()
    stream = await gateway.complete([504, 3575, 282], 3, sampling={**FULL, "logprobs": 2})
    assert [record.token_id for record in stream.logprobs] == stream.ids
    for record in stream.logprobs:
        assert record.logprob <= 0
        assert record.top[0].token_id == record.token_id  # greedy takes the likeliest
        assert len(record.top) == 2


async def test_a_schema_is_followed_and_cannot_be_resumed(worker: WorkerProcess) -> None:
    gateway = await worker.connect()
    schema = {"type": "array", "items": {"enum": [7, 11]}, "minItems": 2, "maxItems": 2}
    sampling = {"temperature": 0, "json_schema": json.dumps(schema)}
    stream = await gateway.complete([504, 3575], 24, sampling=sampling)
    numbers = json.loads(stream.text)
    assert len(numbers) == 2
    assert set(numbers) <= {7, 11}
    resumed = await gateway.complete([504, 3575], 20, sampling=sampling, generated=stream.ids[:2])
    assert resumed.terminal is not None
    assert resumed.terminal.failure.reason == common_pb2.REASON_RESUME_IMPOSSIBLE
    broken = await gateway.complete([504], 5, sampling={"json_schema": "{"})
    assert broken.terminal is not None
    assert broken.terminal.failure.reason == common_pb2.REASON_INVALID_ARGUMENT


async def test_a_full_cache_postpones_a_sequence_instead_of_failing_all(worker: WorkerProcess) -> None:
    gateway = await worker.connect()
    prompts = [[number + 100] * 60 for number in range(2)]
    streams = [gateway.submit(prompt, 64, sampling=FULL) for prompt in prompts]
    for stream in streams:
        await stream.ended()
        assert stream.terminal is not None
        assert stream.terminal.finish_reason == common_pb2.FINISH_REASON_LENGTH
        assert len(stream.ids) == 64
    assert any("sequence preempted" in line for line in worker.log)


async def test_an_engine_that_dies_fails_its_sequences_and_comes_back(worker: WorkerProcess) -> None:
    gateway = await worker.connect()
    call = worker.watch()
    watcher = aiter(call)
    await anext(watcher)
    stream = gateway.submit([504, 3575], 200, sampling=FULL)
    await stream.tokens(2)
    child = child_of(worker)
    child.send_signal(signal.SIGKILL)
    terminal = await stream.ended()
    assert terminal.failure.reason == common_pb2.REASON_ENGINE_FAILED
    assert "signal 9" in terminal.failure.message
    states = []
    async with asyncio.timeout(TIMEOUT_S):
        async for response in watcher:
            states += [model.state for model in response.info.models]
            if states and states[-1] == worker_pb2.ResidentModel.STATE_READY:
                break
    call.cancel()
    assert worker_pb2.ResidentModel.STATE_LOADING in states
    again = await gateway.complete([504, 3575], 2, sampling=FULL)
    assert again.ids == stream.ids[:2]
    assert child_of(worker).pid != child.pid


async def test_a_killed_worker_leaves_no_engine_behind() -> None:
    async with running_worker("--name", "w", "--engines", "llamacpp") as worker:
        await worker.load(spec("llamacpp", n_parallel=1))
        child = child_of(worker)
        await worker.stop(signal.SIGKILL)
        gone, alive = await asyncio.to_thread(psutil.wait_procs, [child], TIMEOUT_S)
        assert (len(gone), alive) == (1, [])


async def test_a_worker_killed_while_its_engine_starts_leaves_none_behind_either() -> None:
    async with running_worker("--name", "w", "--engines", "llamacpp") as worker:
        loading = asyncio.create_task(worker.load(spec("llamacpp", n_parallel=1)))
        process = psutil.Process(worker.process.pid)
        async with asyncio.timeout(TIMEOUT_S):
            while not (children := process.children(recursive=True)):
                await asyncio.sleep(0.005)
        await worker.stop(signal.SIGKILL)
        gone, alive = await asyncio.to_thread(psutil.wait_procs, children, TIMEOUT_S)
        assert (len(gone), alive) == (1, [])
        await asyncio.gather(loading, return_exceptions=True)


async def test_weights_that_are_none_fail_the_load_with_the_engine_s_own_words() -> None:
    async with running_worker("--name", "w", "--engines", "llamacpp") as worker:
        entry = spec("llamacpp", n_parallel=1)
        entry.tokenizer_source = entry.source
        entry.source = f"file://{__file__}"
        entry.digest = ""
        failure = (await worker.load(entry))[-1].progress.failure
        assert failure.reason == common_pb2.REASON_LOAD_FAILED
        assert "gguf" in failure.message.lower()


async def test_the_installed_llama_cpp_can_be_asked_to_finish_its_log() -> None:
    """Else the words above may be lost: a thread of its own writes them, for which no exit waits."""
    flush = log_flusher()
    assert flush is not None
    flush()
