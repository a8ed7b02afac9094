"""The response of a hot path, written past ASGI.

ASGI's `send` looks over every header for what none of ours can have, and writes a response's head, each piece
of its body and its end separately, each write being a system call that wakes the client. Here a head leaves
together with what stands behind it. What uvicorn knows of a response stays true, because its connection goes
on by that: keep-alive, the next request of a pipeline, shutdown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from tokenfleet.gateway.http.headers import CLOSE, Headers, lines

Send = Callable[[dict[str, Any]], Awaitable[None]]

CHUNKED = (b"transfer-encoding", b"chunked")
LAST_CHUNK = b"0\r\n\r\n"


class Response:
    """One response, on what uvicorn keeps of it."""

    __slots__ = ("_cycle", "_flow", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow: FlowControl = cycle.flow
        self._transport: asyncio.Transport = cycle.transport

    @classmethod
    def of(cls, send: Send) -> Response:
        """The response that uvicorn's `send`, a method of its cycle, would write."""
        return cls(cast(Any, send).__self__)

    def arrived_body(self) -> bytes:
        """The request's body if it came as one with the head, as nearly all do; ASGI's message is spared."""
        cycle = self._cycle
        if cycle.more_body or cycle.waiting_for_100_continue or cycle.disconnected or self._flow.read_paused:
            return b""
        body = bytes(cycle.body)
        cycle.body = bytearray()
        return body

    async def begin(self, headers: Headers, first: Callable[[], bytes]) -> None:
        """A status of 200, and what are by then the first chunks of the body."""
        if await self._wanted():
            self.write(self._head(200, [*headers, CHUNKED]) + first())

    def write(self, data: bytes) -> None:
        """Further chunks."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def end(self, last: bytes) -> None:
        """The last chunks."""
        if await self._wanted():
            self.write(last + LAST_CHUNK)
            self._complete()

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """All of a response in one piece."""
        if await self._wanted():
            length = (b"content-length", b"%d" % len(body))
            self.write(self._head(status, [*headers, length]) + body)
            self._complete()

    async def _wanted(self) -> bool:
        """Whether the client is still there, once it has read enough.

        One that asks again and again and reads nothing would otherwise fill the gateway's memory.
        """
        if self._flow.write_paused and not self._cycle.disconnected:
            await self._flow.drain()
        return not self._cycle.disconnected

    def _head(self, status: int, headers: Headers) -> bytes:
        cycle = self._cycle
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        if CLOSE in headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            headers = [*headers, CLOSE]
        return b"".join([STATUS_LINE[status], *lines(headers), b"\r\n"])

    def _complete(self) -> None:
        cycle = self._cycle
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._transport.close()
        cycle.on_response()
