"""HTTP by hand, for tests that send what no client library would."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.contract.openapi import ERROR, check

PATIENCE_S = 5.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        body = json.loads(self.body)
        check(ERROR, body)
        error: dict[str, Any] = body["error"]
        return error


@dataclass
class Raw:
    """One connection. Whatever it waits for comes within `PATIENCE_S`, or the test fails."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)

    async def answer(self) -> Answer:
        """The next response. Raises IncompleteReadError when the connection ends instead."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            if headers.get("transfer-encoding") == "chunked":
                body = await self._chunks()
            else:
                body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return Answer(int(first.split()[1]), headers, body)

    async def closed(self) -> bytes:
        """What comes until the gateway closes the connection; a reset is an end too."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def _chunks(self) -> bytes:
        parts = []
        while size := int(await self.reader.readline(), 16):
            parts.append(await self.reader.readexactly(size))
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return b"".join(parts)


@asynccontextmanager
async def raw_connection(url: str, receive_buffer: int = 0) -> AsyncIterator[Raw]:
    parsed = httpx.URL(url)
    endpoint = socket.socket()
    endpoint.setblocking(False)
    if receive_buffer:
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(endpoint, (parsed.host, parsed.port))
    reader, writer = await asyncio.open_connection(sock=endpoint, limit=2**20)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


def request(path: str, body: Any = None, **headers: str) -> bytes:
    """A whole request; `body` goes as JSON unless it is bytes."""
    payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: x"]
    if body is not None:
        lines.append(f"Content-Length: {len(payload)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + payload
