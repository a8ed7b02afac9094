"""A client that costs little and speaks TLS: one connection, requests one after the other."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

LIMIT_BYTES = 1 << 20
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway, and what it takes to be let in."""

    url: str
    model: str
    context: ssl.SSLContext | None = None
    key: str = ""

    def request(self, tokens: int, *, stream: bool) -> bytes:
        messages = [{"role": "user", "content": "How much is that?"}]
        fields = {"model": self.model, "messages": messages, "max_tokens": tokens, "stream": stream}
        body = json.dumps(fields).encode()
        authorization = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: fleet\r\n"
        return f"{head}{authorization}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection:
    """Raises AssertionError for an answer that is not whole."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self) -> None:
        parts = urlsplit(self._target.url)
        self._reader, self._writer = await asyncio.open_connection(
            parts.hostname, parts.port, ssl=self._target.context, limit=LIMIT_BYTES
        )

    def close(self) -> None:
        self._writer.transport.abort()

    async def ask(self, tokens: int, *, stream: bool) -> None:
        async with asyncio.timeout(PATIENCE_S):
            self._writer.write(self._target.request(tokens, stream=stream))
            head = await self._reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            if stream:
                end = await self._reader.readuntil(b"0\r\n\r\n")
                assert b"data: [DONE]" in end, end[-200:]
            else:
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await self._reader.readexactly(length)
