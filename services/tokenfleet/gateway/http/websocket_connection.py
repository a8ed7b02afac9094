"""uvicorn's WebSocket connection, bounded, and open to whoever has a frame to write.

Deltas are written from the step handler straight to the transport, as for server-sent events. What a client
sends is bounded in size by the WebSocket library and in number here: frames are parsed in Python, and a flood
of tiny ones would hold up everybody else's tokens.
"""

from __future__ import annotations

import asyncio
import codecs
import struct
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

import orjson
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from tokenfleet.gateway.http.errors import HttpError, error_body, error_code
from tokenfleet.gateway.http.guard import LINGER_S, SCOPE_KEY, Rules
from tokenfleet.runtime.errors import FleetError

# Parsed before anything else gets a turn, and before the frames are counted.
SLICE_BYTES = 4096
# Of one piece that arrives, of one message, and of what the application has not taken yet.
MAX_FRAMES = 1024
MAX_FRAGMENTS = 4096
MAX_WAITING = 256

_HEADS = [bytes((0x81, size)) for size in range(126)]
_CODES = {
    CloseCode.MESSAGE_TOO_BIG: "message_too_large",
    CloseCode.INVALID_DATA: "invalid_utf8",
    CloseCode.POLICY_VIOLATION: "too_many_frames",
}


def text_frame(payload: bytes) -> bytes:
    """A text message as a server sends it: whole and unmasked."""
    size = len(payload)
    if size < 126:
        return _HEADS[size] + payload
    head = struct.pack("!BBH", 0x81, 126, size) if size < 65536 else struct.pack("!BBQ", 0x81, 127, size)
    return head + payload


def message_frame(message: dict[str, Any]) -> bytes:
    return text_frame(orjson.dumps(message))


def error_message(error: FleetError, request_id: str | None = None) -> dict[str, Any]:
    message = {"type": "error", "request_id": request_id, **error_body(error)}
    return message | {"retry_after_s": error.retry_after_s} if error.retry_after_s else message


class Watcher(Protocol):
    """What the session wants to hear of its connection."""

    def writable(self) -> None:
        """The client read enough; writing may go on."""

    def stop_soon(self) -> None:
        """The process is stopping: take nothing new."""


class WebSocketConnection(WebSocketsSansIOProtocol):
    """One client's socket."""

    rules: ClassVar[Rules] = Rules()

    watcher: Watcher | None = None
    write_paused = False
    held_bytes = 0  # of what waits until the client reads
    _unread: asyncio.TimerHandle | None = None

    async def run_asgi(self) -> None:
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[SCOPE_KEY] = self
        await super().run_asgi()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_reading()
        super().connection_lost(exc)

    def write(self, frame: bytes) -> None:
        """A frame of the application's, unless the socket is closing."""
        if not (self.close_sent or self.disconnected or self.transport.is_closing()):
            self.transport.write(frame)

    def hang_up(self, code: int, reason: str, *, linger: bool = True) -> None:
        """Closes for a reason, without waiting for the client to agree."""
        if self.close_sent or self.transport.is_closing():
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self._finish(linger=linger)

    def hang_up_on(self, error: FleetError) -> None:
        """Closes on a client that broke the rules, and says which."""
        self.rules.refused(error_code(error))
        self.write(message_frame(error_message(error)))
        # not for reading: frames of this engine step may still be on their way to the transport
        self.hang_up(CloseCode.POLICY_VIOLATION, error_code(error), linger=False)

    # -- what arrives ------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.close_sent:
            return
        frames = 0
        for start in range(0, len(data), SLICE_BYTES):
            self.conn.receive_data(data[start : start + SLICE_BYTES])
            frames += len(self.conn.events)
            if self.conn.parser_exc is not None:
                self.handle_parser_exception()
                return
            if frames > MAX_FRAMES or self.queue.qsize() > MAX_WAITING:
                self._refuse(CloseCode.POLICY_VIOLATION, "too many frames at once")
                return
            self.handle_events()
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self._finish()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:
            self._refuse(CloseCode.POLICY_VIOLATION, "a message of too many fragments")
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        # uvicorn finds this too, and writes a traceback for every client that does it
        if self.curr_msg_data_type == "text" and not _is_utf8(self.frames):
            self._refuse(CloseCode.INVALID_DATA, "invalid UTF-8")
            return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """The library has failed the connection and its close frame waits; what is wrong goes ahead of it."""
        closed = self.conn.close_sent
        if closed is None or self.close_sent:
            self._finish()
            return
        code = CloseCode(closed.code)
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": closed.reason})
        if self.handshake_complete:
            name = _CODES.get(code, "protocol_error")
            self.rules.refused(name)
            limit = f"; a message may have {self.config.ws_max_size} bytes"
            hint = limit if code == CloseCode.MESSAGE_TOO_BIG else ""
            error = HttpError(400, name, f"no valid WebSocket message: {closed.reason}{hint}")
            self.transport.write(message_frame(error_message(error)))
        self._finish()

    def _refuse(self, code: CloseCode, reason: str) -> None:
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def _finish(self, *, linger: bool = True) -> None:
        """Sends what is left to say, and gives the client a moment to read it."""
        self.close_sent = True
        self.stop_keepalive()
        self.writable.set()
        output = b"".join(self.conn.data_to_send())
        if not self.transport.is_closing():
            self.transport.write(output)
            if self.read_paused:
                self.read_paused = False
                self.transport.resume_reading()
            if linger and self.transport.can_write_eof():
                self.transport.write_eof()
            else:
                self.transport.close()
        self.loop.call_later(LINGER_S, self.transport.abort)

    # -- clients that do not read, or do not answer ------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write_paused = True
        self._expect_reading()
        self._unread = self.loop.call_later(self.rules.limits.write_timeout_s, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_paused = False
        self._expect_reading()
        if self.watcher is not None:
            self.watcher.writable()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.loop.call_later(LINGER_S, self.transport.abort)

    def _expect_reading(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _give_up(self) -> None:
        self.rules.refused("slow_consumer")
        self.transport.abort()

    # -- the end of the process --------------------------------------------------------------------

    def shutdown(self) -> None:
        """Running answers may finish first; the session closes when they have."""
        if self.watcher is not None:
            self.watcher.stop_soon()
        else:
            super().shutdown()


def _is_utf8(parts: Iterable[bytes]) -> bool:
    """Whether they are together; a character may begin in one part and end in another."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for part in parts:
            decoder.decode(part)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def websocket_class(rules: Rules) -> type[WebSocketConnection]:
    """WebSockets of a server with these rules; uvicorn's configuration has the rest."""
    return type("RuledWebSocket", (WebSocketConnection,), {"rules": rules})
