"""A link to a service that should always be there: re-dialed for ever, and saying when it comes and goes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Generic

from tokenfleet.runtime.links import DialError, Link, PeerRefusedError, dial
from tokenfleet.runtime.links.base import Received, Sent
from tokenfleet.runtime.telemetry import get_logger

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0

log = get_logger(__name__)


class PersistentLink(Generic[Sent, Received]):
    """Dials `method` of `target` until stopped; `on_up` and `on_down` bracket each connection."""

    def __init__(
        self,
        target: str,
        method: str,
        request: type[Sent],
        parse: Callable[[bytes], Received],
        *,
        on_received: Callable[[Sequence[Received]], None],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        frames: bool = True,
    ) -> None:
        self.target = target
        self._method = method
        self._request = request
        self._parse = parse
        self._on_received = on_received
        self._on_up = on_up
        self._on_down = on_down
        self._frames = frames
        self._link: Link[Sent] | None = None
        self._ended = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        return self._link is not None

    def send(self, message: Sent) -> None:
        if self._link is not None:
            self._link.send(message)

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            # it would hold its last attempt's call, and gRPC goes on connecting while anybody does
            self._keeper = None
        if self._link is not None:
            self._link.close()

    def received(self, messages: Sequence[Received]) -> None:
        self._on_received(messages)

    def writable_again(self) -> None:
        """What waits for an answer is bounded by the gateway's requests, so nothing is held back."""

    def closed(self, cause: str) -> None:
        log.info("link lost", target=self.target, method=self._method, cause=cause)
        self._link = None
        self._ended.set()
        self._on_down()

    async def _keep(self) -> None:
        pause, refusal = FIRST_PAUSE_S, ""
        while True:
            self._ended.clear()
            try:
                self._link = await dial(
                    self.target, self._method, self._request, self._parse, self._accept, frames=self._frames
                )
            except DialError as error:
                # one side's distrust does not pass by itself, and is told once
                news = isinstance(error, PeerRefusedError) and str(error) != refusal
                refusal = str(error) if isinstance(error, PeerRefusedError) else ""
                tell = log.warning if news else log.debug
                tell("peer not reachable yet", target=self.target, error=str(error))
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))
                pause = min(pause * 2, LONGEST_PAUSE_S)
                continue
            if self._ended.is_set():
                self._link = None
                continue
            pause, refusal = FIRST_PAUSE_S, ""
            log.info("link open", target=self.target, method=self._method)
            self._on_up()
            await self._ended.wait()

    def _accept(self, link: Link[Sent]) -> PersistentLink[Sent, Received]:
        del link
        return self
