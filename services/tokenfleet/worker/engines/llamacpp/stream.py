"""One streamed completion from llama.cpp's server: events out, nothing awaited on the way.

A callback per event lets tokens of many sequences that arrived in one turn of the event loop leave as one
step; an HTTP client that gives each response its own task would cost twice the CPU and lose that. The parsing
is httptools'. A connection serves one request: the server keeps a thread for each open one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import httptools
import orjson

_OK = 200


class CompletionStream(asyncio.Protocol):
    """`on_event` gets each event; `on_broken` gets (status, message) when there is no last event to come."""

    def __init__(
        self,
        body: bytes,
        on_event: Callable[[dict[str, Any]], None],
        on_broken: Callable[[int, str], None],
    ) -> None:
        self._body = body
        self._on_event = on_event
        self._on_broken = on_broken
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._arrived: list[dict[str, Any]] = []
        self._finished = False

    def abort(self) -> None:
        """Hangs up: the server frees the slot with its next step. No callback follows."""
        self._finished = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._finished:
            self._transport.abort()
            return
        head = (
            "POST /completion HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(self._body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + self._body)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(0, f"no HTTP from the server: {error}")
        arrived, self._arrived = self._arrived, []
        for event in arrived:
            if not self._finished:
                self._take(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(0, str(exc) if exc else "the server closed the connection")

    # Called by the parser.

    def on_body(self, body: bytes) -> None:
        self._rest += body
        if self._parser.get_status_code() != _OK:
            return
        *events, self._rest = self._rest.split(b"\n\n")
        self._arrived += [orjson.loads(event[6:]) for event in events if event.startswith(b"data: {")]

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != _OK:
            self._break(self._parser.get_status_code(), _error_message(self._rest))

    def _take(self, event: dict[str, Any]) -> None:
        error = event.get("error")
        if error is not None:
            self._break(int(error.get("code", 500)), str(error.get("message", error)))
            return
        if event.get("stop"):
            self._finished = True
        self._on_event(event)
        if self._finished and self._transport is not None:
            self._transport.close()

    def _break(self, status: int, message: str) -> None:
        if self._finished:
            return
        self._finished = True
        if self._transport is not None:
            self._transport.abort()
        self._on_broken(status, message)


def _error_message(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:500].decode(errors="replace")
