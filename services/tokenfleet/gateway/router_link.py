"""One router as the gateway sees it: its stream, what it was asked on it, and what leaves next.

What a stream was told belongs to that stream. When it ends, the router has given back everything that it knew
by it, so the gateway forgets it too: a release for an earlier stream would mean nothing to the present one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenfleet.gateway.persistent_link import PersistentLink
from tokenfleet.runtime.discovery import Peer
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import router_pb2

METHOD = "/tokenfleet.v1.Router/Schedule"

# A message costs more than what a release says is worth: it travels with the next ask where one comes.
RELEASE_WITHIN_S = 0.005


@dataclass(slots=True, eq=False)
class PendingAsk:
    """An ask without its answer. The ask gets a new `ask_id` each time that it is put to a router."""

    ask: router_pb2.Ask
    answer: asyncio.Future[router_pb2.Placement]
    on_waiting: Callable[[router_pb2.Waiting], FleetError | None]
    deadline: float  # on the loop's clock; 0: the request has none
    router: RouterLink | None = None  # who was asked last


class RouterLink:
    """`pending` and `placed` are those of the present stream, by `ask_id`."""

    def __init__(
        self,
        peer: Peer,
        gateway_id: str,
        *,
        on_received: Callable[[RouterLink, router_pb2.ScheduleResponse], None],
        on_up: Callable[[RouterLink], None],
        on_down: Callable[[RouterLink], None],
        frames: bool,
    ) -> None:
        self.peer = peer
        self.pending: dict[int, PendingAsk] = {}
        self.placed: set[int] = set()
        self._loop = asyncio.get_running_loop()
        self._gateway_id = gateway_id
        self._on_received = on_received
        self._on_up = on_up
        self._outgoing = router_pb2.ScheduleRequest()
        self._leaving = False  # at the end of this turn of the loop
        self._departure: asyncio.TimerHandle | None = None
        self._link: PersistentLink[router_pb2.ScheduleRequest, router_pb2.ScheduleResponse] = PersistentLink(
            peer.target,
            METHOD,
            router_pb2.ScheduleRequest,
            router_pb2.ScheduleResponse.FromString,
            on_received=self._received,
            on_up=self._opened,
            on_down=lambda: on_down(self),
            frames=frames,
        )

    @property
    def target(self) -> str:
        return self.peer.target

    @property
    def up(self) -> bool:
        return self._link.up

    @property
    def standing(self) -> tuple[bool, bool]:
        """How much it should be asked, as the cluster sees it: greater is better."""
        return not self.peer.terminating, self.peer.ready

    def start(self) -> None:
        self._link.start()

    async def stop(self) -> None:
        await self._link.stop()

    def ask(self, pending: PendingAsk) -> None:
        """Leaves together with all that is asked in this turn of the loop."""
        pending.router = self
        self.pending[pending.ask.ask_id] = pending
        self._outgoing.asks.append(pending.ask)
        self._leave_soon()

    def cancel(self, ask_id: int) -> None:
        """Takes back what was asked, and what was placed for it in the meantime."""
        self.pending.pop(ask_id, None)
        self.placed.discard(ask_id)
        for position, ask in enumerate(self._outgoing.asks):
            if ask.ask_id == ask_id:  # has not left yet; a router takes a message's cancels before its asks
                del self._outgoing.asks[position]
                return
        self._outgoing.cancels.append(router_pb2.CancelAsk(ask_id=ask_id))
        self._leave_soon()

    def release(self, release: router_pb2.Release) -> None:
        """Leaves with the next ask, or a few milliseconds later."""
        self.placed.discard(release.ask_id)
        self._outgoing.releases.append(release)
        if self._departure is None:
            self._departure = self._loop.call_later(RELEASE_WITHIN_S, self._flush)

    def forget(self) -> list[PendingAsk]:
        """The stream ended: answers what was pending on it."""
        pending, self.pending = self.pending, {}
        self.placed.clear()
        self._outgoing = router_pb2.ScheduleRequest()
        return list(pending.values())

    def _opened(self) -> None:
        self._outgoing = router_pb2.ScheduleRequest(gateway_id=self._gateway_id)
        self._leave_soon()
        self._on_up(self)

    def _received(self, messages: Sequence[router_pb2.ScheduleResponse]) -> None:
        for message in messages:
            self._on_received(self, message)

    def _leave_soon(self) -> None:
        if not self._leaving:
            self._leaving = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._leaving = False
        if self._departure is not None:
            self._departure.cancel()
            self._departure = None
        outgoing, self._outgoing = self._outgoing, router_pb2.ScheduleRequest()
        if self.up and outgoing.ByteSize():
            self._link.send(outgoing)
