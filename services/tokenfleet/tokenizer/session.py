"""One gateway's `Encode` stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tokenfleet.runtime.links import Link
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.tokenizer.queue import EncodeQueue
from tokenfleet.v1 import tokenizer_pb2

log = get_logger(__name__)

# Results kept for a gateway that does not read; a healthy one always does.
HELD_RESULTS = 4096


class EncodeSession:
    """The receiving half of the link, and the recipient of its results."""

    def __init__(
        self, queue: EncodeQueue, link: Link[tokenizer_pb2.EncodeResponse], sessions: set[EncodeSession]
    ) -> None:
        sessions.add(self)
        self._sessions = sessions
        self._queue = queue
        self._link = link
        self._held: tokenizer_pb2.EncodeResponse | None = None
        self.open = True

    def received(self, messages: Sequence[tokenizer_pb2.EncodeRequest]) -> None:
        self._queue.submit(self, [job for message in messages for job in message.jobs])

    def deliver(self, response: tokenizer_pb2.EncodeResponse) -> None:
        """Sends it at the end of this turn of the event loop, with all else that comes until then."""
        if self._held is None:
            self._held = response
            asyncio.get_running_loop().call_soon(self._flush)
            return
        self._held.MergeFrom(response)
        if len(self._held.results) > HELD_RESULTS and not self._link.writable:
            log.warning("gateway disconnected: it does not read", peer=self._link.peer)
            self._link.abort()

    def writable_again(self) -> None:
        self._flush()

    def close(self) -> None:
        """Sends what is there, then ends the stream."""
        if self._held is not None:
            self._link.send(self._held)
            self._held = None
        self._link.close()

    def _flush(self) -> None:
        if self._held is not None and self._link.writable:
            held, self._held = self._held, None
            self._link.send(held)

    def closed(self, cause: str) -> None:
        self.open = False
        self._sessions.discard(self)
        log.info("gateway left", peer=self._link.peer, cause=cause)
