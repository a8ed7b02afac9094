"""When and where jobs are encoded.

What one read brings is looked at as a whole. A small lot is encoded at once, on the event loop: handing it to
a thread would cost more than encoding it. A larger one joins the queue of the one encoding thread; whatever
arrives while a batch is encoded forms the next, so batches grow with the load and nobody waits for a timer.
Small lots therefore also overtake a long prompt that is being encoded.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.tokenizer.metrics import TokenizerMetrics
from tokenfleet.tokenizer.model import LoadedModel
from tokenfleet.tokenizer.registry import ModelRegistry
from tokenfleet.v1 import common_pb2, tokenizer_pb2

log = get_logger(__name__)

# A batch ends here, so that its first results do not wait for its last for long.
BATCH_BYTES = 64 * 1024

OK = "ok"


class Recipient(Protocol):
    """Who asked, and gets the results."""

    open: bool

    def deliver(self, response: tokenizer_pb2.EncodeResponse) -> None: ...


@dataclass(slots=True, eq=False)
class _Item:
    recipient: Recipient
    job: tokenizer_pb2.EncodeJob
    deadline: float  # on the event loop's clock


@dataclass(slots=True)
class _Encoded:
    """What a batch came to."""

    responses: dict[Recipient, tokenizer_pb2.EncodeResponse] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    reused_tokens: int = 0
    looked_up_tokens: int = 0

    def note(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def add(self, item: _Item) -> tokenizer_pb2.EncodeResult:
        response = self.responses.get(item.recipient)
        if response is None:
            response = self.responses[item.recipient] = tokenizer_pb2.EncodeResponse()
        return response.results.add(job_id=item.job.job_id)

    def fail(self, item: _Item, error: FleetError) -> None:
        self.add(item).failure.CopyFrom(error.to_failure())
        self.note(error.reason_name)


class EncodeQueue:
    """Bounded; belongs to the event loop but for the thread it owns."""

    def __init__(
        self,
        registry: ModelRegistry,
        *,
        inline_bytes: int,
        limit: int,
        metrics_registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._registry = registry
        self._inline_bytes = inline_bytes
        self._limit = limit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._ready: deque[tuple[_Item, LoadedModel]] = deque()
        self._parked: dict[str, list[_Item]] = {}  # by the model that is being loaded for them
        self._running = 0
        self._loads: set[asyncio.Task[None]] = set()
        self._batch_s = 0.0  # of the last batch
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self.metrics = TokenizerMetrics(lambda: self.depth, self._cache_bytes, metrics_registry)

    @property
    def depth(self) -> int:
        """Jobs accepted and not answered."""
        return len(self._ready) + self._running + sum(len(items) for items in self._parked.values())

    def submit(self, recipient: Recipient, jobs: Sequence[tokenizer_pb2.EncodeJob]) -> None:
        """Each job is answered exactly once, unless its recipient closes first or this queue drains."""
        if self._draining:
            return
        now = asyncio.get_running_loop().time()
        answered = _Encoded()
        lot: list[tuple[_Item, LoadedModel]] = []
        cost = 0
        for job in jobs:
            left_ms = job.context.deadline_ms
            item = _Item(recipient, job, now + left_ms / 1000 if left_ms else float("inf"))
            try:
                model = self._registry.get(job.model)
                if model is None:
                    self._park(item)
                    continue
                self._check_room(len(self._ready) + self._running + len(lot))
            except FleetError as error:
                answered.fail(item, error)
                continue
            lot.append((item, model))
            cost += job.ByteSize() * model.encoder.relative_cost
        if cost <= self._inline_bytes:
            self._encode_now(lot, answered)
        else:
            self._ready.extend(lot)
            self._next_batch()
        self._deliver(answered)

    async def drain(self) -> None:
        """Returns when the jobs that can be encoded now are answered; no other is from now on.

        Their streams are about to end, and whoever is left without an answer asks another tokenizer: that
        is sooner than any advice to do so.
        """
        self._draining = True
        for load in self._loads:
            load.cancel()
        self._parked.clear()
        self._next_batch()
        await self._idle.wait()

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _check_room(self, depth: int) -> None:
        if depth >= self._limit:
            raise FleetError(
                common_pb2.REASON_QUEUE_FULL,
                f"the tokenizer's queue is full ({self._limit} jobs wait)",
                retry_after_s=max(0.1, self._batch_s),
            )

    def _encode_now(self, items: list[tuple[_Item, LoadedModel]], encoded: _Encoded) -> None:
        if items:
            started = time.perf_counter()
            _encode(items, encoded)
            self.metrics.observe("inline", len(items), time.perf_counter() - started)

    def _next_batch(self) -> None:
        """Starts the thread on what waits, unless it is at work."""
        if self._running:
            return
        batch = self._take_batch()
        if not batch:
            self._idle.set()
            return
        self._running = len(batch)
        self._idle.clear()
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._thread, _encode_timed, batch).add_done_callback(self._batch_ended)

    def _take_batch(self) -> list[tuple[_Item, LoadedModel]]:
        now = asyncio.get_running_loop().time()
        batch: list[tuple[_Item, LoadedModel]] = []
        expired = _Encoded()
        size = 0
        while self._ready and size < BATCH_BYTES:
            item, model = self._ready.popleft()
            if not item.recipient.open:
                continue
            if item.deadline <= now:
                expired.fail(item, _too_late())
                continue
            size += item.job.ByteSize()
            batch.append((item, model))
        self._deliver(expired)
        return batch

    def _batch_ended(self, future: asyncio.Future[tuple[_Encoded, float]]) -> None:
        jobs, self._running = self._running, 0
        if future.cancelled():
            return
        encoded, self._batch_s = future.result()
        self.metrics.observe("thread", jobs, self._batch_s)
        self._deliver(encoded)
        self._next_batch()

    def _park(self, item: _Item) -> None:
        """Until its model is loaded. Each model has its own bound, so that a cold one crowds out no other."""
        name = item.job.model
        waiting = self._parked.setdefault(name, [])
        self._check_room(len(waiting))
        waiting.append(item)
        if len(waiting) > 1:
            return
        load = asyncio.create_task(self._unpark_when_loaded(name))
        self._loads.add(load)
        load.add_done_callback(self._loads.discard)

    async def _unpark_when_loaded(self, name: str) -> None:
        try:
            model = await self._registry.obtain(name)
        except FleetError as error:
            failed = _Encoded()
            for item in self._parked.pop(name):
                failed.fail(item, error)
            self._deliver(failed)
        else:
            self._ready.extend((item, model) for item in self._parked.pop(name))
        self._next_batch()

    def _deliver(self, encoded: _Encoded) -> None:
        self.metrics.add(encoded.outcomes, encoded.tokens, encoded.looked_up_tokens, encoded.reused_tokens)
        for recipient, response in encoded.responses.items():
            if recipient.open:
                recipient.deliver(response)

    def _cache_bytes(self) -> int:
        return sum(model.prompts.cache_bytes for model in self._registry.loaded())


def _encode(items: Iterable[tuple[_Item, LoadedModel]], encoded: _Encoded) -> None:
    for item, model in items:
        result = encoded.add(item)
        try:
            model.encode(item.job, result)
        except Exception as error:
            _note_failure(item, result, error, encoded)
        else:
            encoded.note(OK)
            encoded.tokens += result.token_count
            if not item.job.HasField("tokens"):
                encoded.looked_up_tokens += result.token_count
                encoded.reused_tokens += result.cached_tokens


def _note_failure(
    item: _Item, result: tokenizer_pb2.EncodeResult, error: Exception, encoded: _Encoded
) -> None:
    if not isinstance(error, FleetError):
        # one job's crash must not take the others of its batch along
        log.error("encoding crashed", model=item.job.model, exc_info=error)
        error = FleetError(common_pb2.REASON_INTERNAL, f"encoding failed: {error!r}")
    result.Clear()
    result.job_id = item.job.job_id
    result.failure.CopyFrom(error.to_failure())
    encoded.note(error.reason_name)


def _encode_timed(items: Sequence[tuple[_Item, LoadedModel]]) -> tuple[_Encoded, float]:
    started = time.perf_counter()
    encoded = _Encoded()
    _encode(items, encoded)
    return encoded, time.perf_counter() - started


def _too_late() -> FleetError:
    return FleetError(
        common_pb2.REASON_DEADLINE_EXCEEDED, "the request's deadline passed while its prompt waited"
    )
