"""One keep-alive connection with at most one request on it: the hot path of the driver."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from time import perf_counter
from typing import Any, cast

from loadtest.driver.http import ProtocolError, ResponseReader
from loadtest.driver.load import Load
from loadtest.driver.sse import EventCounter
from loadtest.driver.stats import Tally

# Events end with a blank line of bare line feeds, so this cannot be the middle of a chunk.
_FRAME_AND_CHUNK_END = b"\n\n\r\n"


class Session(asyncio.Protocol):
    """Sends a request, judges its answer, and says that it is free again, or that it is lost."""

    def __init__(
        self,
        load: Load,
        tally: Tally,
        on_free: Callable[[Session], None],
        on_lost: Callable[[Session], None],
    ) -> None:
        self._load = load
        self._tally = tally
        self._on_free = on_free
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._reader: ResponseReader | None = None
        self._counter = EventCounter(load.marker)
        self._body: list[bytes] = []
        self._marker = load.marker
        self._empty = load.marker + b'"'
        self._steady = False
        self._fast_frames = 0
        self._every_gap = load.every_gap
        self._heard = 0.0
        self._since = self._first = self._last = self._gap = 0.0

    @property
    def busy(self) -> bool:
        return self._reader is not None

    def send(self, request: bytes, due: float) -> None:
        """`due` is when the request should have left: a late driver must not flatter the fleet."""
        assert self._transport is not None
        assert self._reader is None, "one request at a time"
        self._counter = EventCounter(self._load.marker)
        self._body = []
        self._reader = ResponseReader(self._counter.feed if self._load.stream else self._body.append)
        self._since = self._last = due
        self._first = self._gap = 0.0
        self._steady = False
        self._fast_frames = 0
        self._tally.started += 1
        self._transport.write(request)

    def give_up_if_silent(self, now: float) -> None:
        if self.busy and now - self._last > self._load.silence_s:
            self._fail(f"silent for {self._load.silence_s:g} s")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._every_gap:
            self._note_gap(data)
        if self._steady and data[-4:] == _FRAME_AND_CHUNK_END:
            # whole frames of text and nothing else: counted without taking them apart
            frames = data.count(b"\n\n")
            if frames == data.count(self._marker) and self._empty not in data:
                now = perf_counter()
                gap = now - self._last
                self._gap = max(self._gap, gap)
                self._last = now
                self._fast_frames += frames
                self._tally.content_frames += frames
                return
        self._take_apart(data)

    def _note_gap(self, data: bytes) -> None:
        now = perf_counter()
        if self._first and b"[DONE]" not in data:
            self._tally.gaps.append(now - self._heard)
        self._heard = now

    def _take_apart(self, data: bytes) -> None:
        reader, counter = self._reader, self._counter
        if reader is None:
            self._fail("bytes that no request asked for")
            return
        before = counter.content
        try:
            reader.feed(data)
        except ProtocolError as error:
            self._fail(str(error))
            return
        if counter.content != before:
            now = perf_counter()
            if before:
                self._gap = max(self._gap, now - self._last)
            else:
                self._first = now
            self._last = now
            self._tally.content_frames += counter.content - before
        if reader.complete:
            self._finish(reader)
        else:
            self._steady = counter.content > 0 and reader.between_chunks and not counter.unfinished

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.busy:
            self._reader = None
            self._steady = False
            self._tally.fail(f"connection lost: {exc or 'closed by the server'}")
        self._on_lost(self)

    def _fail(self, reason: str) -> None:
        """Nothing that follows on this connection could be trusted: it goes with the request."""
        self._reader = None
        self._steady = False
        self._tally.fail(reason)
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, reader: ResponseReader) -> None:
        self._reader = None
        self._steady = False
        problem = self._judge(reader)
        if problem:
            self._tally.fail(problem)
        if not self._load.keep_alive or reader.headers.get(b"connection", b"").lower() == b"close":
            self.close()
        else:
            self._on_free(self)

    def _judge(self, reader: ResponseReader) -> str:
        """What is wrong with the finished answer, after counting what is right with it; empty: nothing."""
        kind = reader.headers.get(b"content-type", b"").decode("latin-1")
        streamed = self._load.stream and kind.startswith("text/event-stream")
        if reader.status != 200:
            return f"HTTP {reader.status}: {self._error_text()}"
        if self._load.stream and not streamed:
            return f"content-type {kind!r} instead of an event stream"
        try:
            return self._judge_stream() if streamed else self._judge_whole()
        except (ValueError, KeyError, TypeError) as error:
            return f"malformed answer: {type(error).__name__}: {error}"

    def _judge_stream(self) -> str:
        end = self._counter.end()
        frames = self._counter.content + self._fast_frames
        if end.error:
            return f"error event: {end.error}"
        if not end.done:
            return "the stream ended without [DONE]"
        if problem := self._wrong_length(end.completion_tokens, end.finish_reason):
            return problem
        if not frames:
            return "a stream without text"
        assert end.completion_tokens is not None
        now = perf_counter()
        self._tally.succeed(tokens=end.completion_tokens, frames=frames, latency_s=now - self._since)
        self._tally.pace(
            ttft_s=None if self._counter.begins_broken else self._first - self._since,
            itl_s=(self._last - self._first) / max(end.completion_tokens - 1, 1),
            worst_gap_s=self._gap,
        )
        return ""

    def _judge_whole(self) -> str:
        answer: dict[str, Any] = json.loads(b"".join(self._body))
        tokens = answer["usage"]["completion_tokens"]
        if problem := self._wrong_length(tokens, answer["choices"][0]["finish_reason"]):
            return problem
        self._tally.succeed(tokens=tokens, frames=0, latency_s=perf_counter() - self._since)
        return ""

    def _wrong_length(self, tokens: int | None, finish_reason: str | None) -> str:
        if tokens is None:
            return "no usage in the answer"
        finished = finish_reason == "length" or (self._load.untold_finish and finish_reason is None)
        if tokens != self._load.max_tokens or not finished:
            return f"{tokens} tokens of {self._load.max_tokens}, finish_reason {finish_reason!r}"
        return ""

    def _error_text(self) -> str:
        body = b"".join(self._body) or self._counter.unfinished
        try:
            return str(json.loads(body)["error"]["message"])[:200]
        except (ValueError, KeyError, TypeError):
            return repr(body[:200])
