"""Links as length-prefixed frames: four bytes of big-endian length, then one serialized message.

An empty frame is a heartbeat. A side that has sent nothing for `HEARTBEAT_S` sends one; a side that has heard
nothing for `SILENCE_S` gives the link up, since TCP alone may take many minutes to notice a dead host.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, Generic, cast

from tokenfleet.runtime.links.base import Factory, LinkHandler, Received, Sent

HEARTBEAT_S = 5.0
SILENCE_S = 16.0
MAX_FRAME_BYTES = 16 * 1024 * 1024
# Bytes queued towards a peer before the link says it is not writable.
HIGH_WATER_BYTES = 512 * 1024

_LENGTH = struct.Struct(">I")
_HEARTBEAT = _LENGTH.pack(0)


class FrameLink(asyncio.Protocol, Generic[Sent, Received]):
    """Both the connection's protocol and the `Link` that its user sends with."""

    def __init__(
        self,
        parse: Callable[[bytes], Received],
        factory: Factory[Sent, Received],
        preamble: bytes = b"",
    ) -> None:
        self._parse = parse
        self._factory = factory
        self._preamble = preamble
        self._partial = bytearray()
        self._transport: asyncio.Transport | None = None
        self._handler: LinkHandler[Received] | None = None
        self._writable = True
        self._closed = False
        self._heard = self._spoke = False
        self._silent_s = 0.0
        self._beat: asyncio.TimerHandle | None = None
        self.on_lost: Callable[[], None] | None = None
        self.peer = ""

    @property
    def writable(self) -> bool:
        return self._writable

    def send(self, message: Sent) -> None:
        if self._closed or self._transport is None:
            return
        body = message.SerializeToString()
        self._spoke = True
        self._transport.write(_LENGTH.pack(len(body)) + body)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have all the methods of asyncio's and none of its base classes
        transport = self._transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        no_delay(transport)
        self.peer = peer_name(transport)
        if self._preamble:
            transport.write(frame(self._preamble))
        self._handler = self._factory(self)
        self._beat = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._on_beat)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if self._partial:
            self._partial += data
            if not _has_whole_frame(self._partial):
                return
            data = bytes(self._partial)
            self._partial.clear()
        messages: list[Received] = []
        position, size = 0, len(data)
        while size - position >= 4:
            (length,) = _LENGTH.unpack_from(data, position)
            end = position + 4 + length
            if length > MAX_FRAME_BYTES:
                self.abort()
                return
            if end > size:
                break
            if length:
                messages.append(self._parse(data[position + 4 : end]))
            position = end
        if position < size:
            self._partial += data[position:]
        if messages and self._handler is not None and not self._closed:
            self._handler.received(messages)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._handler is not None:
            self._handler.writable_again()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        if self._beat is not None:
            self._beat.cancel()
        if self.on_lost is not None:
            self.on_lost()
        if self._handler is not None:
            self._handler.closed(str(exc) if exc else "closed by the peer")

    def _on_beat(self) -> None:
        self._silent_s = 0.0 if self._heard else self._silent_s + HEARTBEAT_S
        if self._silent_s >= SILENCE_S:
            self.abort()
            return
        if not self._spoke and self._transport is not None:
            self._transport.write(_HEARTBEAT)
        self._heard = self._spoke = False
        self._beat = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._on_beat)


def _has_whole_frame(data: bytearray) -> bool:
    if len(data) < 4:
        return False
    length: int = _LENGTH.unpack_from(data)[0]
    return len(data) >= 4 + length or length > MAX_FRAME_BYTES


def frame(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def no_delay(transport: asyncio.BaseTransport) -> None:
    """Small writes go out at once: without it a delayed acknowledgement costs some 40 ms."""
    raw: Any = transport.get_extra_info("socket")
    if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def peer_name(transport: asyncio.BaseTransport) -> str:
    name = transport.get_extra_info("peername")
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name or "local")
