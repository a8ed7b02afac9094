"""Where answers go: into one JSON body, or frame by frame to the client's socket.

The streaming sink writes from the step handler straight to the transport. A client that does not keep up gets
its text merged into larger frames; one whose unsent text outgrows the buffer is disconnected with a typed
event, because nothing it does may grow the gateway's memory or slow another client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

from tokenfleet.gateway.held_text import keep
from tokenfleet.gateway.http.alarm import Alarm
from tokenfleet.gateway.http.chunks import ChunkStyle, chunk
from tokenfleet.gateway.http.connection import Connection
from tokenfleet.gateway.http.headers import Headers
from tokenfleet.gateway.http.logprobs import Logprobs
from tokenfleet.gateway.http.response import Response
from tokenfleet.gateway.lanes import cast
from tokenfleet.gateway.sequence import Sequence
from tokenfleet.gateway.write_batch import WriteBatch
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import worker_pb2

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class WholeSink:
    """Collects the answers of a request that wants them in one piece."""

    def __init__(self, choices: int, logprobs: Logprobs | None = None) -> None:
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._logprobs = logprobs

    async def open(self) -> None:
        pass

    def delta(self, index: int, text: str, ids: list[int]) -> None:
        del ids
        self._texts[index].append(text)

    def logprobs(self, index: int, entry: worker_pb2.TokenLogprobs) -> None:
        if self._logprobs is not None:
            self._logprobs.add(index, entry)

    def loading(self, progress: pb.LoadProgress) -> None:
        """Nothing can be said before the response begins."""

    def text(self, index: int) -> str:
        return "".join(self._texts[index])


class StreamSink:
    """Server-sent events on one connection.

    While its client keeps up, the sequences that it serves have lanes and do not ask here at all.
    """

    # Whether a token can be told by its text alone.
    plain = True

    __slots__ = (
        "_add",
        "_begun",
        "_buffer_bytes",
        "_choices",
        "_comment",
        "_flow",
        "_headers",
        "_held",
        "_held_chars",
        "_moulds",
        "_on_slow",
        "_opener",
        "_opening",
        "_placed",
        "_response",
        "_sequences",
        "_started",
        "_style",
        "_transport",
        "_with_ids",
        "_write",
    )

    def __init__(
        self,
        response: Response,
        connection: Connection,
        style: ChunkStyle,
        writes: WriteBatch,
        *,
        headers: Headers,
        choices: int,
        with_ids: bool,
        buffer_bytes: int,
        on_slow: Callable[[FleetError], None],
    ) -> None:
        self._response = response
        self._style = style
        self._headers = headers
        self._choices = choices
        self._with_ids = with_ids
        self._buffer_bytes = buffer_bytes
        self._on_slow = on_slow
        self._opening = self._begun = self._placed = self._started = False
        self._opener: asyncio.Future[None] | None = None
        self._comment = b""
        self._held: dict[int, tuple[list[str], list[int]]] = {}
        self._held_chars = 0
        self._transport = connection.transport
        self._write = response.write
        self._add = writes.add
        self._flow = connection.flow
        self._moulds = [style.mould(index) for index in range(choices)]
        self._sequences: SequenceOf[Sequence] = ()

    def serve(self, sequences: SequenceOf[Sequence]) -> None:
        """Whose answers these are. Sink and sequences hold each other until it serves none again."""
        if self.plain and not self._with_ids:
            self._sequences = sequences

    @property
    def started(self) -> bool:
        """Whether the response has begun, so that errors can no longer change its status."""
        return self._begun

    def change(self, style: ChunkStyle) -> None:
        """Another model answers: what comes from now on says so."""
        self._style = style
        self._moulds = [style.mould(index) for index in range(self._choices)]

    def open_while_waiting(self) -> None:
        """Sends the headers although no worker was found yet, so that progress can be shown."""
        if not self._opening:
            self._opening = True
            self._opener = asyncio.ensure_future(self._begin())

    async def open(self) -> None:
        """Sends the headers, if they have not gone yet, and the opening frames, once."""
        self._placed = True
        if self._begun:
            self._start()
        elif self._opener is not None:
            await self._opener
        elif not self._opening:
            self._opening = True
            await self._begin()

    def give_up_opening(self) -> None:
        """Headers that have not gone yet do not go any more."""
        if self._opener is not None:
            self._opener.cancel()

    async def _begin(self) -> None:
        await self._response.begin(_HEADERS + self._headers, self._first)
        if self._started:
            self.flush()

    def _first(self) -> bytes:
        """What goes with the headers."""
        self._begun = True
        if not self._placed:
            return self._comment
        self._started = True
        return self._openings()

    def _openings(self) -> bytes:
        return b"".join([self._style.opening(index) for index in range(self._choices)])

    def _start(self) -> None:
        if self._started:
            return
        opening = self._openings()
        if opening:
            self._write(opening)
        self._started = True
        self.flush()

    def delta(self, index: int, text: str, ids: list[int]) -> None:
        if self._held or not self._started or self._flow.write_paused:
            self._hold(index, text, ids)
        elif self._with_ids:
            self._add((self._transport, self._style.frame_with_ids(index, text, ids)))
        elif text:
            self._add((self._transport, cast(self._moulds[index], text)))

    def logprobs(self, index: int, entry: worker_pb2.TokenLogprobs) -> None:
        """Nobody asked: streams with log probabilities have a sink of their own."""

    def loading(self, progress: pb.LoadProgress) -> None:
        """An SSE comment: clients ignore it, people with curl read it."""
        self.remark(progress_text(progress))

    def remark(self, text: str) -> None:
        """Where the headers have not gone yet, the latest one follows them."""
        self._comment = chunk(f": {text}\n\n".encode())
        if self._begun and not self._flow.write_paused:
            self._write(self._comment)

    async def finish(self, frames: bytes) -> None:
        """The frames that end the answer, and the end of the response; what was held goes first."""
        self.flush()
        await self._response.end(frames)

    def flush(self) -> None:
        """Writes what was held back, one frame per answer, and lets what follows take the short way."""
        if not self._started:
            return
        held, self._held, self._held_chars = self._held, {}, 0
        for index, (texts, ids) in held.items():
            text = "".join(texts)
            if self._with_ids:
                self._write(self._style.frame_with_ids(index, text, ids))
            elif text:
                self._write(cast(self._moulds[index], text))
        if not self._flow.write_paused:
            for sequence in self._sequences:
                sequence.lane = (self._transport, *self._moulds[sequence.index])

    def pause(self) -> None:
        """The client does not keep up: what comes from now on is held."""
        for sequence in self._sequences:
            sequence.lane = None

    def _hold(self, index: int, text: str, ids: list[int]) -> None:
        texts, collected = self._held.setdefault(index, ([], []))
        keep(texts, text)
        if self._with_ids:
            collected += ids
        self._held_chars += len(text) + (8 * len(ids) if self._with_ids else 0)
        if self._held_chars > self._buffer_bytes:
            self._on_slow(
                FleetError(
                    pb.REASON_SLOW_CONSUMER,
                    f"more than {self._buffer_bytes} bytes wait for this client: read faster",
                )
            )


def progress_text(progress: pb.LoadProgress) -> str:
    """How far a load has come: `model: fetching 40 % (40 of 100 bytes, 12 s left)`."""
    stage = pb.LoadProgress.Stage.Name(progress.stage).removeprefix("STAGE_").lower().replace("_", " ")
    text, details = f"{progress.model}: {stage}", []
    if progress.bytes_total:
        text += f" {100 * progress.bytes_done // progress.bytes_total} %"
        details.append(f"{progress.bytes_done} of {progress.bytes_total} bytes")
    if progress.eta_ms:
        details.append(f"{round(progress.eta_ms / 1000)} s left")
    return f"{text} ({', '.join(details)})" if details else text


class Interruption:
    """The one way a request is stopped from outside: its task is cancelled, and here is why.

    Watches the request's connection, so that a client that left frees its blocks at once.
    """

    def __init__(self, connection: Connection | None) -> None:
        self._loop = asyncio.get_running_loop() if connection is None else connection.loop
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._task = task
        self._connection = connection
        self.cause: FleetError | None = None
        self.on_writable: Callable[[], None] | None = None
        self.on_paused: Callable[[], None] | None = None
        self._deadline = connection.deadline if connection is not None else Alarm(self._loop)

    def __enter__(self) -> Interruption:
        if self._connection is not None:
            self._connection.watcher = self
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.watcher = None
            self._deadline.unset()
        else:
            self._deadline.stop()
        # Without these the request's objects hold each other and wait for the garbage collector.
        self._connection = self.on_writable = self.on_paused = None

    def expire_at(self, deadline: float, why: Callable[[], FleetError]) -> None:
        self._deadline.set(deadline, lambda: self.stop(why()))

    def stop(self, cause: FleetError) -> None:
        if self.cause is None:
            self.cause = cause
            self._task.cancel()

    def gone(self) -> None:
        self.stop(FleetError(pb.REASON_CANCELLED, "the client closed the connection"))

    def paused(self) -> None:
        if self.on_paused is not None:
            self.on_paused()

    def writable(self) -> None:
        if self.on_writable is not None:
            self.on_writable()

    def resolve(self) -> FleetError | None:
        """Inside `except CancelledError`: the cause, if it was this interruption that cancelled."""
        if self.cause is not None:
            self._task.uncancel()
        return self.cause
