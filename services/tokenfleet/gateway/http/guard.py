"""A client connection that is hard on those who abuse it: uvicorn's, with limits.

They are checked where the bytes arrive. A request that arrives in one piece, as nearly all do, costs a few
comparisons; a timer runs only while a client owes the rest of something, or does not read. A refusal is a
typed error in OpenAI's shape like any other; the connection ends with it, because what follows can no longer
be understood or is not wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from tokenfleet.gateway.http import limits
from tokenfleet.gateway.http.alarm import Alarm
from tokenfleet.gateway.http.errors import HttpError, error_body, error_headers
from tokenfleet.gateway.http.headers import (
    CLOSE,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    EXPECT,
    FIELDS_KEY,
    ORIGIN,
    Fields,
    Headers,
    Origins,
    lines,
    request_id,
)
from tokenfleet.gateway.http.limits import Limits

# After a refusal the client gets this long to read it, and what it still sends is thrown away: a connection
# closed at once would be reset, and the answer with it.
LINGER_S = 2.0
# What the kernel did not take. Frames wait one by one here, each at several times its size, so that only few
# may: what a sink holds back behind them is merged.
MOST_UNWRITTEN_BYTES = 2048
# Connections above the limit that are told so; what comes on top is closed without a word.
MOST_TURNED_AWAY = 256
SCOPE_KEY = "tokenfleet.connection"
_OFFER = frozenset({b"connection", b"upgrade", b"http2-settings"})


@dataclass(slots=True, frozen=True)
class Rules:
    """What holds for all connections of a server; `refused` hears the code of each refusal.

    While `leaving` says so, each response is its connection's last: clients come back through a new one.
    """

    limits: Limits = field(default_factory=Limits)
    origins: Origins = field(default_factory=Origins)
    refused: Callable[[str], None] = lambda code: None
    leaving: Callable[[], bool] = lambda: False

    def headers(self, fields: Fields, request_id: str) -> Headers:
        """What every response carries."""
        headers = [(b"x-request-id", request_id.encode())]
        if self.leaving():
            headers.append(CLOSE)
        return headers + self.origins.headers(fields) if ORIGIN in fields else headers


class GuardedProtocol(HttpToolsProtocol):
    """Parses requests, and refuses what is too much, too slow or no HTTP."""

    rules: ClassVar[Rules] = Rules()

    raw: asyncio.Transport
    _idle: Alarm
    # What takes the place of the parser once the connection is refused.
    _instead: Callable[[], None] | None = None
    _in_head = False
    _in_body = False
    _upgrading = False
    _piece = 0  # bytes in the piece that arrived last,
    _first_piece = 0  # in the one in which the present message began,
    _received = 0  # and in those since
    _body_bytes = 0
    _owed = ""  # the part of the message that the client is to complete in time
    _overdue: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.raw = transport
        transport.set_write_buffer_limits(MOST_UNWRITTEN_BYTES)
        patience_s: float = self.timeout_keep_alive
        above = len(self.connections) - self.rules.limits.connections
        if above > 0:
            self._instead = self._turn_away
            patience_s = LINGER_S if above <= MOST_TURNED_AWAY else 0.0
        self._idle = Alarm(self.loop)
        self._idle.set(self.loop.time() + patience_s, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self._expect_reading()
        self._idle.stop()
        super().connection_lost(exc)
        self.cut_off()

    def cut_off(self) -> None:
        """Nothing can be sent any more; the request being answered is in vain."""

    # -- the parser's events, in the order in which they come --------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._instead is not None:
            self._instead()
            return
        self._piece = len(data)
        self._received += self._piece
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, HttpError) else limits.malformed("the URL is none"))
        except httptools.HttpParserError as error:
            self._refuse(limits.malformed(str(error)))
        else:
            if self._in_head or self._in_body:
                self._check_unfinished()
            elif self._overdue is not None:
                self._expect_nothing()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._idle.unset()
        self._in_head = True
        self._first_piece = self._piece
        self._received = self._body_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # nothing here looks at trailers
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        fields = self._check_head()
        self._upgrading = self.parser.should_upgrade()
        if not self._upgrading:
            scope: dict[str, Any] = self.scope  # type: ignore[assignment]
            scope[FIELDS_KEY] = fields
            scope[SCOPE_KEY] = self
            super().on_headers_complete()
        self._in_head = False
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self.rules.limits.body_bytes:
            raise limits.body_too_large(self.rules.limits)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._idle.unset()
        if not self._upgrading:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's, but that an idle connection has an alarm instead of a timer."""
        self.server_state.total_requests += 1
        if self.raw.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle.set(self.loop.time() + self.timeout_keep_alive, self.timeout_keep_alive_handler)

    # -- limits ------------------------------------------------------------------------------------

    def _check_head(self) -> Fields:
        """The headers by name, where there is nothing to object to."""
        bounds, headers = self.rules.limits, self.headers
        fields = dict(headers)
        if len(headers) > bounds.headers or len(self.url) > bounds.url_bytes:
            raise limits.head_too_large(bounds, len(self.url))
        if self._first_piece + self._received > bounds.header_bytes:
            size = len(self.url) + sum([len(name) + len(value) + 4 for name, value in headers])
            if size > bounds.header_bytes:
                raise limits.head_too_large(bounds, len(self.url))
        if CONTENT_LENGTH in fields and int(fields[CONTENT_LENGTH]) > bounds.body_bytes:
            raise limits.body_too_large(bounds)
        if CONTENT_ENCODING in fields and fields[CONTENT_ENCODING].lower() not in (b"", b"identity"):
            raise limits.encoded_body(fields[CONTENT_ENCODING])
        if EXPECT in fields:
            self.expect_100_continue = fields[EXPECT].lower() == b"100-continue"
        if not self._answered and (len(self.pipeline) >= bounds.pipelined or self.parser.should_upgrade()):
            raise limits.malformed("too much is waiting on this connection")
        return fields

    def _check_unfinished(self) -> None:
        """The message goes on in a later piece: how much of it may there be, and for how long?"""
        bounds = self.rules.limits
        if self._in_head:
            if self._received > bounds.header_bytes:
                self._refuse(limits.head_too_large(bounds, len(self.url)))
            else:
                self._expect("headers", bounds.header_timeout_s)
        elif self._received > bounds.wire_bytes:
            self._refuse(limits.body_too_large(bounds))
        else:
            self._expect("body", bounds.body_timeout_s)

    @property
    def _answered(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _expect(self, part: str, seconds: float) -> None:
        if part == self._owed:
            return
        self._expect_nothing()
        self._owed = part
        self._overdue = self.loop.call_later(seconds, self._is_overdue, part, seconds)

    def _expect_nothing(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
            self._owed = ""

    def _is_overdue(self, part: str, seconds: float) -> None:
        self._expect_nothing()
        if self.flow.read_paused:  # it is not the client who is slow
            self._expect(part, seconds)
        else:
            self._refuse(limits.too_slow(part, seconds))

    # -- refusing ----------------------------------------------------------------------------------

    def _refuse(self, error: HttpError) -> None:
        """Ends the connection with a typed error, behind the answers that are under way."""
        self._instead = _discard
        self._expect_nothing()
        self.rules.refused(error.code)
        if self._answered and self._in_body:
            self.transport.close()  # an answer given before all of its request had come cannot be taken back
        elif self._answered:
            self._say(error)
        elif not self._in_body:
            self.cycle.keep_alive = False
        elif self.pipeline:
            self.pipeline[0] = (self.cycle, self._saying(error))
        elif self.cycle.response_started:
            self.transport.close()
        else:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.cut_off()
            self._say(error)

    def _turn_away(self) -> None:
        self._instead = _discard
        error = limits.too_many_connections(self.rules.limits)
        self.rules.refused(error.code)
        self._say(error)

    def _say(self, error: HttpError) -> None:
        if self.raw.is_closing():
            return
        headers, body = self._response(error)
        self.raw.write(b"".join([STATUS_LINE[error.status], *lines(headers), b"\r\n", body]))
        self.flow.resume_reading()
        if self.raw.can_write_eof():
            self.raw.write_eof()
            self.loop.call_later(LINGER_S, self.raw.abort)
        else:
            self.raw.close()

    def _saying(self, error: HttpError) -> Callable[..., Awaitable[None]]:
        """The refusal as an application, for when its turn comes."""
        headers, body = self._response(error)

        async def say(scope: Any, receive: Any, send: Callable[..., Awaitable[None]]) -> None:
            await send({"type": "http.response.start", "status": error.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        return say

    def _response(self, error: HttpError) -> tuple[Headers, bytes]:
        body = orjson.dumps(error_body(error))
        fields = dict(self.headers or ())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            CLOSE,
            *self.rules.headers(fields, request_id(fields, "refused")),
            *error_headers(error),
        ]
        return headers, body

    # -- clients that do not read ------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()
        self._unread = self.loop.call_later(self.rules.limits.write_timeout_s, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._expect_reading()

    def _expect_reading(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _give_up(self) -> None:
        self.rules.refused("slow_consumer")
        self.raw.abort()

    def timeout_keep_alive_handler(self) -> None:
        """Closes; what the client has not read by then it will not get."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(LINGER_S, self.raw.abort)

    # -- upgrades ----------------------------------------------------------------------------------

    def _upgrade(self, rest: bytes) -> None:
        self._expect_nothing()
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(HttpError(405, "method_not_allowed", "this is no proxy: CONNECT is not served"))
        elif method == b"GET" and self._get_upgrade() == b"websocket" and self.ws_protocol_class is not None:
            self._become_websocket(self.ws_protocol_class)
        else:
            self._parse_again(rest)

    def _become_websocket(self, kind: type[asyncio.Protocol]) -> None:
        """Hands the handshake, as it came, to the WebSocket protocol."""
        self.connections.discard(self)
        protocol = kind(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        protocol.connection_made(self.raw)
        self.raw.set_protocol(protocol)
        protocol.data_received(self._head(b"GET", self.headers))

    def _parse_again(self, rest: bytes) -> None:
        """An offer to upgrade may be declined by serving the request as if it had not been made.

        The parser thinks that a message ends with such an offer, and would lose its body. Java's client makes
        one (to HTTP/2) with every first request.
        """
        kept = [header for header in self.headers if header[0] not in _OFFER]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            kept.append(CLOSE)
        head = self._head(self.parser.get_method(), kept)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(head + rest)

    def _head(self, method: bytes, headers: Headers) -> bytes:
        return b"".join([method, b" ", self.url, b" HTTP/1.1\r\n", *lines(headers), b"\r\n"])


def _discard() -> None:
    """What a refused client still sends is of no interest."""
