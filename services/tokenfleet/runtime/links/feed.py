"""A server's stream as a link: what a source yields is sent, as fast as the other side takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Generic

from google.protobuf.message import Message

from tokenfleet.runtime.links.base import Link, Sent
from tokenfleet.runtime.telemetry import get_logger

log = get_logger(__name__)


class Feed(Generic[Sent]):
    """Ends the link with the source, and the source with the link; looks at nothing that arrives."""

    def __init__(self, link: Link[Sent], source: AsyncIterator[Sent]) -> None:
        self._link = link
        self._writable = asyncio.Event()
        self._task = asyncio.create_task(self._send(source), name=f"feed {link.peer}")

    def received(self, messages: Sequence[Message]) -> None: ...

    def writable_again(self) -> None:
        self._writable.set()

    def closed(self, cause: str) -> None:
        del cause
        self._task.cancel()

    async def _send(self, source: AsyncIterator[Sent]) -> None:
        try:
            async for message in source:
                self._link.send(message)
                if not self._link.writable:
                    self._writable.clear()
                    await self._writable.wait()
        except Exception:
            log.exception("feed broken", peer=self._link.peer)
        finally:
            if isinstance(source, AsyncGenerator):
                await source.aclose()
            self._link.close()
