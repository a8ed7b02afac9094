"""Where the answers of one gRPC call go.

A message costs the gateway some 35 µs however little is in it, and only one write of a call can be under way.
So what arrives during a write waits and leaves as one message per answer: a client or a gateway that cannot
keep up makes messages larger, not queues longer. What waits for a client is bounded; one that falls behind
further loses its call, and with it the worker's memory that it held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from tokenfleet.gateway.fallback import Fallback
from tokenfleet.gateway.held_text import keep
from tokenfleet.gateway.sequence import Sequence
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import inference_pb2, worker_pb2

Response = inference_pb2.GenerateResponse | inference_pb2.ChatResponse

ID_BYTES = 8


@dataclass(slots=True, eq=False)
class _Held:
    """What waits of one answer."""

    texts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finished: Sequence | None = None


class DeltaSink:
    """Takes deltas from the step handler, and `pump` writes them from the call's own task."""

    def __init__(
        self,
        write: Callable[[Response], Awaitable[None]],
        response: type[Response],
        *,
        request_id: str,
        model: str,
        choices: int,
        with_ids: bool,
        buffer_bytes: int,
        on_slow: Callable[[FleetError], None],
    ) -> None:
        self._write = write
        self._response = response
        self._introduction: inference_pb2.Delta | None = inference_pb2.Delta(
            request_id=request_id, model=model
        )
        self._unfinished = choices
        self._with_ids = with_ids
        self._buffer_bytes = buffer_bytes
        self._on_slow = on_slow
        self._held: dict[int, _Held] = {}
        self._held_bytes = 0
        self._loading: pb.LoadProgress | None = None
        self._loading_shown = False
        self._usage = pb.Usage()
        self._waiter: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Nothing is sent before the first delta: until then the client's library may still retry."""

    def delta(self, index: int, text: str, ids: list[int]) -> None:
        if not text and not self._with_ids:
            return
        held = self._holding(index)
        keep(held.texts, text)
        self._held_bytes += len(text)
        if self._with_ids:
            held.ids += ids
            self._held_bytes += ID_BYTES * len(ids)
        if self._held_bytes > self._buffer_bytes:
            message = f"more than {self._buffer_bytes} bytes wait for this client: read faster"
            self._on_slow(FleetError(pb.REASON_SLOW_CONSUMER, message))

    def logprobs(self, index: int, entry: worker_pb2.TokenLogprobs) -> None:
        """Not served over gRPC yet: requests that ask for them are refused."""

    def loading(self, progress: pb.LoadProgress) -> None:
        """Only the latest counts."""
        self._loading = progress
        if self._loading_shown:
            self._wake()

    def instead(self, fallback: Fallback) -> None:
        """Another model answers: the next message says so."""
        if self._introduction is None:
            self._introduction = inference_pb2.Delta()
        self._introduction.model = fallback.model
        self._introduction.fallback.requested = fallback.requested
        self._introduction.fallback.reason = fallback.reason

    def show_loading(self) -> None:
        """From now on the client hears of a model that is being loaded."""
        self._loading_shown = True
        self._wake()

    def finish(self, sequence: Sequence) -> None:
        """The answer is complete. With the last one goes the usage of them all."""
        self._holding(sequence.index).finished = sequence
        self._unfinished -= 1
        usage = self._usage
        usage.prompt_tokens = sequence.generation.prompt_tokens
        usage.completion_tokens += len(sequence.ids)
        if sequence.index == 0:
            usage.cached_tokens = sequence.cached_tokens

    async def pump(self, generating: asyncio.Future[None]) -> None:
        """Writes until the generation has ended, well or not, and nothing waits any more."""
        loop = asyncio.get_running_loop()
        generating.add_done_callback(lambda _: self._wake())
        while True:
            for response in self._take():
                await self._write(response)
            if self._held or self._progress_waits:
                continue
            if generating.done():
                return
            self._waiter = loop.create_future()
            await self._waiter

    @property
    def _progress_waits(self) -> bool:
        return self._loading_shown and self._loading is not None

    def _holding(self, index: int) -> _Held:
        held = self._held.get(index)
        if held is None:
            held = self._held[index] = _Held()
            self._wake()
        return held

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self) -> Iterator[Response]:
        """What waits now, as messages; what is added meanwhile is for the next time."""
        taken, self._held, self._held_bytes = self._held, {}, 0
        last = next(reversed(taken), None) if not self._unfinished else None
        if self._progress_waits:
            loading, self._loading = self._loading, None
            if not taken:
                yield self._message(inference_pb2.Delta(loading=loading))
        for index, held in taken.items():
            delta = inference_pb2.Delta(index=index, text="".join(held.texts), token_ids=held.ids)
            if held.finished is not None:
                delta.finish_reason = held.finished.finish_reason  # type: ignore[assignment]
            if index == last:
                delta.usage.CopyFrom(self._usage)
            yield self._message(delta)

    def _message(self, delta: inference_pb2.Delta) -> Response:
        """The first one says what the call is about."""
        if self._introduction is not None:
            delta.MergeFrom(self._introduction)
            self._introduction = None
        return self._response(delta=delta)
