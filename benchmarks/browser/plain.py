"""The same requests without a browser: an HTTP connection and a WebSocket, both kept open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"


class Sse:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def first_token_s(self, request: dict[str, Any]) -> float:
        """From sending to the first text; reads the answer to its end."""
        body = json.dumps({**request, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: fleet\r\nContent-Length: {len(body)}\r\n\r\n"
        begin = perf_counter()
        self._writer.write(head.encode() + body)
        while (
            b'"content":' not in (frame := await self._reader.readuntil(b"\n\n")) or b'"content":""' in frame
        ):
            pass
        first = perf_counter() - begin
        await self._reader.readuntil(_END)
        return first


class Socket:
    """One WebSocket."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def first_token_s(self, request: dict[str, Any]) -> float:
        """From sending to the first text; reads the answer to its end."""
        begin = perf_counter()
        await self._connection.send(json.dumps(request))
        await self._connection.recv()
        first = perf_counter() - begin
        while "usage" not in json.loads(await self._connection.recv()):
            pass
        return first


@asynccontextmanager
async def both(host: str, port: int) -> AsyncIterator[dict[str, Sse | Socket]]:
    """Connected clients by the page's names for the transports."""
    reader, writer = await asyncio.open_connection(host, port)
    async with connect(f"ws://{host}:{port}/v1/stream") as connection:
        try:
            yield {"sse": Sse(reader, writer), "websocket": Socket(connection)}
        finally:
            writer.close()
