"""Links over a bidirectional gRPC call, for either side of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic

import grpc

from tokenfleet.runtime.links.base import Factory, LinkHandler, Received, Sent

# Messages queued towards a peer before the link says it is not writable.
HIGH_WATER_MESSAGES = 64


class GrpcLink(Generic[Sent, Received]):
    """Turns `await write` into `send` with a bounded notion of writability."""

    def __init__(self, peer: str, write: Callable[[Sent], Awaitable[None]]) -> None:
        self.peer = peer
        self._write = write
        self._queue: deque[Sent] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._cancel: Callable[[], object] = lambda: None
        self._handler: LinkHandler[Received] | None = None

    @property
    def writable(self) -> bool:
        return len(self._queue) < HIGH_WATER_MESSAGES

    def send(self, message: Sent) -> None:
        if not self._closing:
            self._queue.append(message)
            self._wake.set()

    def close(self) -> None:
        self._closing = True
        self._wake.set()

    def abort(self) -> None:
        self._queue.clear()
        self.close()
        self._cancel()

    async def run(self, arriving: AsyncIterator[Received], factory: Factory[Sent, Received]) -> None:
        """Carries messages both ways until either side ends; then tells the handler once."""
        handler = self._handler = factory(self)
        sending = asyncio.create_task(self._send_queued())
        receiving = asyncio.create_task(_receive(arriving, handler))
        self._cancel = receiving.cancel
        cause = "closed by the peer"
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            for task in (sending, receiving):
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    if not isinstance(error, grpc.RpcError | grpc.aio.UsageError | asyncio.InvalidStateError):
                        raise error
                    cause = _describe(error)
        finally:
            self._closing = True
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
            handler.closed(cause)

    async def _send_queued(self) -> None:
        while True:
            while self._queue:
                was_writable = self.writable
                await self._write(self._queue.popleft())
                if not was_writable and self.writable and self._handler is not None:
                    self._handler.writable_again()
            if self._closing:
                return
            self._wake.clear()
            await self._wake.wait()


async def _receive(arriving: AsyncIterator[Received], handler: LinkHandler[Received]) -> None:
    async for message in arriving:
        handler.received((message,))


def _describe(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
