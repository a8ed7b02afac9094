"""What only vLLM can get wrong: what it is asked in its own words, its failures, what it leaves behind."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio

from tests.contract.worker_process import WorkerProcess, running_worker, spec
from tests.engines.installed import needs
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.nvml import open_nvml

pytestmark = [*needs("vllm"), pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

ARGUMENTS: dict[str, Any] = {
    "max_model_len": 512,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 48 << 20,
    "stall_timeout_s": 15,
}
FULL = {"temperature": 0, "ignore_eos": True}
PROMPT = [504, 3575, 282]
PATIENCE_S = 400


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[WorkerProcess]:
    async with running_worker("--name", "w", "--engines", "vllm") as process:
        answer = await process.load(spec("vllm", **ARGUMENTS))
        assert answer[-1].progress.stage == common_pb2.LoadProgress.STAGE_READY, answer[-1]
        yield process
        await process.disconnect()


def child_of(worker: WorkerProcess) -> psutil.Process:
    (child,) = psutil.Process(worker.process.pid).children(recursive=True)
    return child


async def test_logprobs_come_with_their_alternatives(worker: WorkerProcess) -> None:
    gateway = await worker.connect()
    stream = await gateway.complete(PROMPT, 3, sampling={**FULL, "logprobs": 2})
    assert [record.token_id for record in stream.logprobs] == stream.ids
    for record in stream.logprobs:
        assert record.logprob <= 0
        assert record.top[0].token_id == record.token_id  # greedy takes the likeliest
        assert len(record.top) == 2
    assert "".join(record.text for record in stream.logprobs) == stream.text


async def test_a_schema_is_followed_and_cannot_be_resumed(worker: WorkerProcess) -> None:
    gateway = await worker.connect()
    schema = {"type": "array", "items": {"enum": [7, 11]}, "minItems": 2, "maxItems": 2}
    sampling = {"temperature": 0, "json_schema": json.dumps(schema)}
    stream = await gateway.complete(PROMPT, 32, sampling=sampling)
    numbers = json.loads(stream.text)
    assert len(numbers) == 2
    assert set(numbers) <= {7, 11}
    resumed = await gateway.complete(PROMPT, 20, sampling=sampling, generated=stream.ids[:2])
    assert resumed.terminal is not None
    assert resumed.terminal.failure.reason == common_pb2.REASON_RESUME_IMPOSSIBLE


async def test_a_bias_and_a_minimum_are_kept(worker: WorkerProcess) -> None:
    gateway = await worker.connect()
    free = await gateway.complete(PROMPT, 1, sampling=FULL)
    forbidden = await gateway.complete(PROMPT, 1, sampling={**FULL, "logit_bias": {free.ids[0]: -100.0}})
    assert forbidden.ids != free.ids
    ends = {"temperature": 0, "logit_bias": {2: 50.0}}  # 2 ends an answer
    assert (await gateway.complete(PROMPT, 8, sampling=ends)).ids == []
    held = await gateway.complete(PROMPT, 8, sampling={**ends, "min_tokens": 5})
    assert len(held.ids) == 5
    resumed = await gateway.complete(
        PROMPT, 6, sampling={**ends, "min_tokens": 5}, generated=held.ids[:2], emitted_chars=0, attempt=2
    )
    assert held.ids[:2] + resumed.ids == held.ids


@pytest.mark.parametrize("penalties", [{"frequency_penalty": 1.5}, {"repetition_penalty": 1.3}])
async def test_penalties_see_what_was_generated_before_a_break(
    worker: WorkerProcess, penalties: dict[str, float]
) -> None:
    gateway = await worker.connect()
    sampling = {**FULL, **penalties}
    whole = await gateway.complete(PROMPT, 24, sampling=sampling)
    plain = await gateway.complete(PROMPT, 24, sampling=FULL)
    assert whole.ids != plain.ids, "the penalty must matter here"
    for border in (6, 12, 18):
        resumed = await gateway.complete(
            PROMPT, 1, sampling=sampling, generated=whole.ids[:border], emitted_chars=0, attempt=2
        )
        assert resumed.ids == whole.ids[border : border + 1]


async def test_what_vllm_refuses_fails_alone_and_in_its_words(worker: WorkerProcess) -> None:
    gateway = await worker.connect()
    running = gateway.submit(PROMPT, 32, sampling=FULL)
    refused = await gateway.complete(PROMPT, 4, sampling={"temperature": 0, "logprobs": 100})
    assert refused.terminal is not None
    assert refused.terminal.failure.reason == common_pb2.REASON_INVALID_ARGUMENT
    assert "logprobs" in refused.terminal.failure.message
    await running.ended()
    assert len(running.ids) == 32


async def test_the_worker_itself_holds_no_torch(worker: WorkerProcess) -> None:
    maps = {mapped.path for mapped in psutil.Process(worker.process.pid).memory_maps()}
    assert not [path for path in maps if "libtorch" in path]
    assert [mapped for mapped in child_of(worker).memory_maps() if "libtorch" in mapped.path]


@pytest.mark.parametrize(("number", "cause"), [(signal.SIGKILL, "died"), (signal.SIGSTOP, "wedged")])
async def test_an_engine_that_dies_or_stands_still_fails_its_sequences_and_comes_back(
    worker: WorkerProcess, number: signal.Signals, cause: str
) -> None:
    gateway = await worker.connect()
    call = worker.watch()
    watcher = aiter(call)
    await anext(watcher)
    stream = gateway.submit(PROMPT, 200, sampling=FULL)
    await stream.tokens(2)
    child = child_of(worker)
    child.send_signal(number)
    async with asyncio.timeout(PATIENCE_S):
        while stream.terminal is None:
            await asyncio.sleep(0.05)
    terminal = stream.terminal
    assert terminal.failure.reason == common_pb2.REASON_ENGINE_FAILED
    assert "signal 9" in terminal.failure.message
    states = []
    async with asyncio.timeout(PATIENCE_S):
        async for response in watcher:
            states += [model.state for model in response.info.models]
            if states and states[-1] == worker_pb2.ResidentModel.STATE_READY:
                break
    call.cancel()
    assert worker_pb2.ResidentModel.STATE_LOADING in states
    assert any("engine died" in line and f'"{cause}"' in line for line in worker.log)
    again = await gateway.complete(PROMPT, 2, sampling=FULL)
    assert again.ids == stream.ids[:2]


@pytest.mark.parametrize(
    ("arguments", "reason", "words"),
    [
        (
            {"extra": {"max_logprob": 5}},
            common_pb2.REASON_LOAD_FAILED,
            ("max_logprob is unknown to vLLM",),
        ),
        (
            {**ARGUMENTS, "kv_cache_memory_bytes": 1 << 44},
            common_pb2.REASON_OUT_OF_MEMORY,
            ("less than requested memory for kv", "CUDA out of memory"),
        ),
    ],
)
async def test_a_failed_load_is_typed_and_leaves_nothing(
    arguments: dict[str, Any], reason: int, words: tuple[str, ...]
) -> None:
    async with running_worker("--name", "w", "--engines", "vllm") as worker:
        failure = (await worker.load(spec("vllm", **arguments)))[-1].progress.failure
        assert failure.reason == reason, failure
        assert any(one in failure.message for one in words), failure
        assert psutil.Process(worker.process.pid).children(recursive=True) == []


@pytest.mark.skipif(open_nvml() is None, reason="there is no GPU here")
async def test_on_a_gpu_it_sleeps_with_little_memory_and_wakes_with_the_same_answers() -> None:
    async with running_worker("--name", "w", "--engines", "vllm") as worker:
        entry = spec("vllm", **{**ARGUMENTS, "kv_cache_memory_bytes": 2 << 30}, enable_sleep_mode=True)
        assert (await worker.load(entry))[-1].progress.stage == common_pb2.LoadProgress.STAGE_READY
        gateway = await worker.connect()
        awake = await gateway.complete(PROMPT, 32, sampling=FULL)
        call = worker.watch()
        model = (await anext(aiter(call))).info.models[0]
        call.cancel()
        assert "sleep" in model.features
        assert model.memory_bytes > 2 << 30
        answer = await worker.unload(sleep=True)
        assert answer[-1].stage == worker_pb2.UnloadModelResponse.STAGE_ASLEEP
        assert answer[-1].freed_bytes == model.memory_bytes - model.sleep.asleep_bytes > 2 << 30
        child_of(worker)
        assert (await worker.load(entry))[-1].progress.stage == common_pb2.LoadProgress.STAGE_READY
        again = await gateway.complete(PROMPT, 32, sampling=FULL)
        assert again.ids == awake.ids
        await worker.disconnect()


async def test_a_worker_killed_while_its_engine_starts_leaves_none_behind() -> None:
    async with running_worker("--name", "w", "--engines", "vllm") as worker:
        loading = asyncio.create_task(worker.load(spec("vllm", **ARGUMENTS)))
        process = psutil.Process(worker.process.pid)
        async with asyncio.timeout(PATIENCE_S):
            while not (children := process.children(recursive=True)):
                await asyncio.sleep(0.005)
        await worker.stop(signal.SIGKILL)
        gone, alive = await asyncio.to_thread(psutil.wait_procs, children, 60)
        assert (len(gone), alive) == (1, [])
        await asyncio.gather(loading, return_exceptions=True)
