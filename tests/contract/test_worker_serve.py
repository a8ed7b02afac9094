"""The worker's data plane over the wire, on the simulated engine: links, resumes, cancels, ends."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from tests.contract.worker_process import Gateway, Stream, WorkerProcess, running_worker, spec
from tokenfleet.v1 import common_pb2, worker_pb2, worker_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

LENGTH = common_pb2.FINISH_REASON_LENGTH
ITL_S = 0.010


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[WorkerProcess]:
    async with running_worker("--name", "w", "--engines", "sim", "--stuck-s", "0.5") as process:
        entry = spec(profile="fixed", itl_ms=ITL_S * 1000, mean_output_tokens=0, max_sequences=256)
        await process.load(entry)
        yield process


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(worker: WorkerProcess) -> AsyncIterator[Gateway]:
    gateway = await worker.connect()
    yield gateway
    assert gateway.problems == []
    await worker.disconnect()


@pytest.mark.parametrize("frames", [True, False])
async def test_a_generation_comes_as_ids_and_text_over_either_link(
    worker: WorkerProcess, frames: bool
) -> None:
    gateway = await worker.connect(frames=frames)
    stream = await gateway.complete([1, 2, 3], 20)
    assert stream.terminal is not None
    assert stream.terminal.finish_reason == LENGTH
    assert len(stream.ids) == 20
    assert stream.text
    assert gateway.worker_id.startswith("w-")
    await worker.disconnect()


async def test_many_sequences_share_a_message_per_step(gateway: Gateway) -> None:
    streams = [gateway.submit([slot, 7], 40) for slot in range(100)]
    for stream in streams:
        await stream.ended()
    assert sum(len(stream.ids) for stream in streams) == 4_000
    assert gateway.messages < 100  # 40 steps, the first tokens, and what a busy machine splits


async def test_equal_prompts_give_equal_answers_and_different_ones_do_not_mix(gateway: Gateway) -> None:
    async def answer(prompt: list[int]) -> Stream:
        return await gateway.complete(prompt, 24)

    first = await asyncio.gather(*(answer([slot, 9, 9]) for slot in range(50)))
    second = await asyncio.gather(*(answer([slot, 9, 9]) for slot in range(50)))
    assert [one.ids for one in first] == [one.ids for one in second]
    assert [one.text for one in first] == [one.text for one in second]
    assert len({tuple(one.ids) for one in first}) == 50


@pytest.mark.parametrize("after", [1, 13, 63])
async def test_a_resumed_answer_is_byte_identical(gateway: Gateway, after: int) -> None:
    prompt = [11, 12, 13]
    whole = await gateway.complete(prompt, 64)
    part = gateway.submit(prompt, 64)
    await part.tokens(after)
    had = len(part.ids)
    text = part.text
    gateway.cancel(part)
    resumed = await gateway.complete(
        prompt, 64 - had, generated=part.ids[:had], emitted_chars=len(text), attempt=2
    )
    assert part.ids[:had] + resumed.ids == whole.ids
    assert text + resumed.text == whole.text


async def test_chunks_of_a_long_prompt_give_the_same_answer(gateway: Gateway) -> None:
    prompt = list(range(1, 3_001))
    whole = await gateway.complete(prompt, 8)
    submit = gateway.build(prompt, 8)
    del submit.token_ids[1_000:]
    submit.pending_chunks = 2
    stream = gateway.expect(submit)
    gateway.link.send(worker_pb2.ServeRequest(submits=[submit]))
    for start in (1_000, 2_000):
        chunk = worker_pb2.SubmitChunk(slot=submit.slot, attempt=1, token_ids=prompt[start : start + 1_000])
        gateway.link.send(worker_pb2.ServeRequest(chunks=[chunk]))
    await stream.ended()
    assert stream.ids == whole.ids


async def test_a_cancel_frees_the_engine_at_once(worker: WorkerProcess, gateway: Gateway) -> None:
    stream = gateway.submit([1, 2], 5_000)
    await stream.tokens(2)
    assert (await worker.load_sample()).models[0].kv_blocks_used > 0
    began = time.monotonic()
    gateway.cancel(stream)
    await stream.ended()
    sample = await worker.load_sample()
    assert sample.models[0].running == 0
    assert sample.models[0].kv_blocks_used == 0
    assert time.monotonic() - began < ITL_S + 0.1
    assert stream.terminal is not None
    assert stream.terminal.finish_reason == common_pb2.FINISH_REASON_CANCELLED


async def test_a_lost_gateway_frees_what_it_held_within_a_step_and_100_ms(worker: WorkerProcess) -> None:
    gateway = await worker.connect()
    streams = [gateway.submit([slot, 2], 5_000) for slot in range(8)]
    for stream in streams:
        await stream.tokens(1)
    await worker.becomes(running=8)
    began = time.monotonic()
    gateway.link.abort()
    await worker.becomes(running=0)
    assert time.monotonic() - began < ITL_S + 0.1


async def test_a_deadline_ends_a_sequence_with_its_reason(gateway: Gateway) -> None:
    began = time.monotonic()
    stream = await gateway.complete([1], 5_000, context={"deadline_ms": 80})
    assert stream.terminal is not None
    assert stream.terminal.failure.reason == common_pb2.REASON_DEADLINE_EXCEEDED
    assert 0.07 < time.monotonic() - began < 1.0


async def test_a_gateway_that_takes_nothing_is_disconnected_and_nobody_else_waits(
    worker: WorkerProcess, gateway: Gateway
) -> None:
    """A call whose answers are never read fills its small window; then the worker must act."""
    channel = grpc.aio.insecure_channel(worker.address, options=[("grpc.http2.bdp_probe", 0)])
    stub: Any = worker_pb2_grpc.WorkerStub(channel)
    call = stub.Serve()
    submits = [
        worker_pb2.Submit(
            slot=slot, attempt=1, model="m", token_ids=[slot + 1], prompt_tokens=1, max_tokens=8_000
        )
        for slot in range(250)
    ]
    await call.write(worker_pb2.ServeRequest(submits=submits))
    await worker.becomes(running=250)
    stream = gateway.submit([5, 5], 30)
    await stream.ended()
    assert stream.arrivals[-1] - stream.arrivals[0] < 30 * ITL_S + 0.5
    await worker.becomes(running=0)
    assert any("takes nothing" in line for line in worker.log)
    call.cancel()
    await channel.close()


async def test_what_is_not_here_is_refused_with_its_reason(gateway: Gateway) -> None:
    stream = await gateway.complete([1], 5, model="other")
    assert stream.terminal is not None
    assert stream.terminal.failure.reason == common_pb2.REASON_NOT_RESIDENT
    stream = await gateway.complete([1], 8_192)
    assert stream.terminal is not None
    assert stream.terminal.failure.reason == common_pb2.REASON_CONTEXT_LENGTH_EXCEEDED
    assert "8193" in stream.terminal.failure.message
    assert "8192" in stream.terminal.failure.message
