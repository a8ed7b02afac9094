import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.unit.tokenizer.fakes import ByteEncoder, job, loaded, publish, spec
from tokenfleet.runtime.catalog import CatalogWatch
from tokenfleet.runtime.errors import FleetError
from tokenfleet.tokenizer import queue as queue_module
from tokenfleet.tokenizer.queue import EncodeQueue
from tokenfleet.tokenizer.registry import ModelRegistry
from tokenfleet.v1 import common_pb2, tokenizer_pb2

LONG = "x" * 200  # more than a queue of these tests encodes inline
INLINE_BYTES = 100


class Recipient:
    """Collects what is delivered, and lets a test wait for it."""

    def __init__(self) -> None:
        self.open = True
        self.responses: list[tokenizer_pb2.EncodeResponse] = []
        self.arrived = asyncio.Event()

    def deliver(self, response: tokenizer_pb2.EncodeResponse) -> None:
        self.responses.append(response)
        self.arrived.set()

    @property
    def results(self) -> dict[int, tokenizer_pb2.EncodeResult]:
        return {result.job_id: result for response in self.responses for result in response.results}

    def reasons(self) -> dict[int, str]:
        return {
            number: common_pb2.Reason.Name(result.failure.reason)
            for number, result in self.results.items()
            if result.HasField("failure")
        }


class Bench:
    """A queue, its one model, and how to wait for it."""

    def __init__(self, limit: int = 100) -> None:
        self.catalog = CatalogWatch("127.0.0.1:1")
        self.encoder = ByteEncoder()
        self.loading = asyncio.Event()
        self.error: FleetError | None = None
        registry = ModelRegistry(self.catalog, self._load)
        self.queue = EncodeQueue(
            registry, inline_bytes=INLINE_BYTES, limit=limit, metrics_registry=CollectorRegistry()
        )
        self.registry = registry
        self.to = Recipient()

    def _load(self, spec: common_pb2.ModelSpec) -> Any:
        if self.error is not None:
            raise self.error
        return loaded(spec, self.encoder)

    def submit(self, *jobs: tokenizer_pb2.EncodeJob, to: Recipient | None = None) -> None:
        self.queue.submit(to or self.to, jobs)

    async def busy(self) -> None:
        """The thread is at work on a job, number 99, that waits to be let go."""
        self.submit(job(99, "wait" + LONG), to=Recipient())
        assert await asyncio.to_thread(self.encoder.entered.wait, 10)

    async def answered(self, count: int) -> None:
        """So many jobs of the usual recipient have an answer."""
        async with asyncio.timeout(10):
            while len(self.to.results) < count:
                self.to.arrived.clear()
                await self.to.arrived.wait()

    async def finish(self) -> None:
        self.encoder.let_go.set()
        await self.queue.drain()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    publish(bench.catalog, spec("m", warm=True), spec("lazy"))
    await bench.registry.first_loaded.wait()
    yield bench
    bench.encoder.let_go.set()
    bench.queue.stop()
    await bench.registry.stop()


async def test_a_small_lot_is_encoded_at_once_and_answered_together(bench: Bench) -> None:
    bench.submit(job(1, "ab"), job(2, "abc"))
    (response,) = bench.to.responses
    assert [list(result.token_ids) for result in response.results] == [[97, 98], [97, 98, 99]]
    assert [len(result.block_hashes) for result in response.results] == [1, 1]
    assert bench.encoder.threads == ["MainThread", "MainThread"]


async def test_a_large_lot_goes_to_the_thread(bench: Bench) -> None:
    bench.submit(job(1, LONG))
    assert not bench.to.responses
    await bench.finish()
    assert list(bench.to.results[1].token_ids) == list(LONG.encode())
    assert bench.encoder.threads[0].startswith("encode")


async def test_many_small_ones_together_are_a_large_lot(bench: Bench) -> None:
    bench.submit(*(job(number, "x" * 20) for number in range(10)))
    await bench.finish()
    assert len(bench.to.results) == 10
    assert "MainThread" not in bench.encoder.threads


async def test_small_lots_overtake_a_long_prompt(bench: Bench) -> None:
    await bench.busy()
    bench.submit(job(1, "ab"))
    assert set(bench.to.results) == {1}


async def test_what_arrives_while_a_batch_runs_forms_the_next(bench: Bench) -> None:
    await bench.busy()
    other = Recipient()
    for number in range(5):
        bench.submit(job(number, LONG), to=bench.to if number % 2 else other)
    assert bench.queue.depth == 6
    await bench.finish()
    assert [len(response.results) for response in bench.to.responses] == [2], "one message for each recipient"
    assert [len(response.results) for response in other.responses] == [3]
    assert bench.queue.metrics.batches["thread"] == 2


async def test_a_batch_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "BATCH_BYTES", 3 * len(LONG))
    await bench.busy()
    bench.submit(*(job(number, LONG) for number in range(7)))
    await bench.finish()
    assert [len(response.results) for response in bench.to.responses] == [3, 3, 1]


async def test_jobs_whose_deadline_passed_are_not_encoded(bench: Bench) -> None:
    await bench.busy()
    bench.submit(job(1, LONG, deadline_ms=1), job(2, LONG, deadline_ms=60_000), job(3, LONG))
    await asyncio.sleep(0.002)
    await bench.finish()
    assert bench.to.reasons() == {1: "REASON_DEADLINE_EXCEEDED"}
    assert set(bench.to.results) == {1, 2, 3}


async def test_jobs_of_a_gateway_that_left_are_dropped(bench: Bench) -> None:
    await bench.busy()
    gone = Recipient()
    bench.submit(job(1, LONG), to=gone)
    gone.open = False
    await bench.finish()
    assert not gone.responses
    assert len(bench.encoder.threads) == 1


async def test_a_full_queue_sheds_with_advice() -> None:
    bench = Bench(limit=3)
    publish(bench.catalog, spec("m", warm=True))
    await bench.registry.first_loaded.wait()
    await bench.busy()
    bench.submit(*(job(number, LONG) for number in range(4)))
    assert bench.to.reasons() == {2: "REASON_QUEUE_FULL", 3: "REASON_QUEUE_FULL"}
    assert bench.to.results[3].failure.retry_after_ms > 0
    await bench.finish()
    assert set(bench.to.results) == {0, 1, 2, 3}
    bench.queue.stop()


async def test_one_bad_job_fails_alone(bench: Bench) -> None:
    unknown = job(3, "ab", model="nothing")
    no_input = tokenizer_pb2.EncodeJob(job_id=4, model="m")
    bench.submit(job(1, "ab"), job(2, "crash"), unknown, no_input, job(5, "cd"))
    assert bench.to.reasons() == {
        2: "REASON_INTERNAL",
        3: "REASON_MODEL_NOT_FOUND",
        4: "REASON_INVALID_ARGUMENT",
    }
    assert list(bench.to.results[5].token_ids) == [99, 100]
    assert bench.queue.metrics.requests["ok"] == 2
    assert bench.queue.metrics.requests["invalid_argument"] == 1


async def test_ids_are_checked_and_hashed_and_counts_travel_alone(bench: Bench) -> None:
    tokens = tokenizer_pb2.TokenInput(token_ids=[97, 98, 99, 100, 101])
    wrong = tokenizer_pb2.TokenInput(token_ids=[97, 256])
    bench.submit(
        tokenizer_pb2.EncodeJob(job_id=1, model="m", tokens=tokens),
        tokenizer_pb2.EncodeJob(job_id=2, model="m", tokens=wrong),
        tokenizer_pb2.EncodeJob(job_id=3, model="m", text="abcde", count_only=True),
        tokenizer_pb2.EncodeJob(job_id=4, model="m", text="abcde", cache_salt="tenant"),
        tokenizer_pb2.EncodeJob(job_id=5, model="m", text="abcde"),
    )
    results = bench.to.results
    assert results[1].token_ids == tokens.token_ids
    assert results[1].block_hashes == results[5].block_hashes
    assert len(results[1].block_hashes) == 2
    assert results[2].failure.field == "token_ids[1]"
    assert "0 to 255" in results[2].failure.message
    assert (results[3].token_count, len(results[3].token_ids), len(results[3].block_hashes)) == (5, 0, 0)
    assert set(results[4].block_hashes).isdisjoint(results[5].block_hashes)


async def test_jobs_wait_for_their_model(bench: Bench) -> None:
    bench.submit(job(1, "ab", model="lazy"), job(2, "cd", model="lazy"), job(3, "ef"))
    assert set(bench.to.results) == {3}, "they hold nobody else up"
    assert bench.queue.depth == 2
    await bench.answered(3)
    assert set(bench.to.results) == {1, 2, 3}


async def test_jobs_of_a_model_that_cannot_be_loaded_fail(bench: Bench) -> None:
    bench.error = FleetError(common_pb2.REASON_LOAD_FAILED, "no such file")
    bench.submit(job(1, "ab", model="lazy"), job(2, "cd", model="lazy"))
    await bench.answered(2)
    assert bench.to.reasons() == {1: "REASON_LOAD_FAILED", 2: "REASON_LOAD_FAILED"}


async def test_draining_answers_what_can_be_and_leaves_the_rest_to_others(bench: Bench) -> None:
    await bench.busy()
    bench.submit(job(1, LONG), job(2, "ab", model="lazy"))
    draining = asyncio.create_task(bench.queue.drain())
    await asyncio.sleep(0)
    bench.submit(job(3, "ab"))
    assert not draining.done()
    bench.encoder.let_go.set()
    await draining
    assert set(bench.to.results) == {1}


async def test_draining_answers_those_whose_model_has_just_been_loaded(bench: Bench) -> None:
    bench.submit(job(1, "wait" + LONG, model="lazy"))
    assert await asyncio.to_thread(bench.encoder.entered.wait, 10)
    draining = asyncio.create_task(bench.queue.drain())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not draining.done()
    bench.encoder.let_go.set()
    await draining
    assert set(bench.to.results) == {1}


async def test_a_cold_model_has_a_bound_of_its_own() -> None:
    bench = Bench(limit=3)
    publish(bench.catalog, spec("m", warm=True), spec("lazy"))
    await bench.registry.first_loaded.wait()
    bench.submit(*(job(number, "ab", model="lazy") for number in range(5)))
    bench.submit(job(10, "ab"))
    assert bench.to.reasons() == {3: "REASON_QUEUE_FULL", 4: "REASON_QUEUE_FULL"}
    assert 10 in bench.to.results
    await bench.answered(6)
    assert set(bench.to.results) == {0, 1, 2, 3, 4, 10}
    bench.queue.stop()
