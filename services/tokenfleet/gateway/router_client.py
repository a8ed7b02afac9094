"""Asking the router: one link, many asks a message, and asks that survive their router.

A router that dies takes its queue with it, so whatever it had not decided is asked again, of another replica
or of the same one when it is back. Reservations of a dead router died with its stream; running sequences do
not notice.
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

_RouterLink = PersistentLink[router_pb2.ScheduleRequest, router_pb2.ScheduleResponse]


@dataclass(slots=True, eq=False)
class _Pending:
    ask: router_pb2.Ask
    answer: asyncio.Future[router_pb2.Placement]
    on_waiting: Callable[[router_pb2.Waiting], None]


class RouterClient:
    """Places sequences, and tells what became of them."""

    def __init__(self, gateway_id: str, *, frames: bool) -> None:
        self._gateway_id = gateway_id
        self._frames = frames
        self._peers: dict[str, Peer] = {}
        self._links: dict[str, _RouterLink] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._active: _RouterLink | None = None
        self._outgoing = router_pb2.ScheduleRequest()
        self._leaving = False  # at the end of this turn of the loop
        self._departure: asyncio.TimerHandle | None = None
        self._pending: dict[int, _Pending] = {}
        self._last_id = 0
        # Asks of an earlier stream are unknown to the present one: their releases are not sent.
        self._first_id_of_stream = 0

    @property
    def ready(self) -> bool:
        return self._active is not None

    async def stop(self) -> None:
        await asyncio.gather(*(link.stop() for link in self._links.values()), *self._stopping)

    def peer_came(self, peer: Peer) -> None:
        """There shall be a router at that address."""
        self._peers[peer.target] = peer
        link = self._links[peer.target] = self._link_to(peer.target)
        link.start()

    def peer_changed(self, peer: Peer) -> None:
        """A router that is to go ends its streams itself, and until then it decides."""
        self._peers[peer.target] = peer

    def peer_left(self, target: str) -> None:
        """Whatever it has not decided is asked of another."""
        del self._peers[target]
        link = self._links.pop(target)
        stopping = asyncio.create_task(link.stop())
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)
        self._deactivate(link)

    async def place(
        self, ask: router_pb2.Ask, on_waiting: Callable[[router_pb2.Waiting], None]
    ) -> router_pb2.Placement:
        """A worker for the ask, which gets its `ask_id` here. Raises FleetError when it was shed."""
        self._last_id += 1
        ask.ask_id = self._last_id
        pending = _Pending(ask, asyncio.get_running_loop().create_future(), on_waiting)
        self._pending[ask.ask_id] = pending
        self._outgoing.asks.append(ask)
        self._leave_soon()
        try:
            return await pending.answer
        except asyncio.CancelledError:
            self._outgoing.cancels.append(router_pb2.CancelAsk(ask_id=ask.ask_id))
            self._leave_soon()
            raise
        finally:
            self._pending.pop(ask.ask_id, None)

    def release(self, release: router_pb2.Release) -> None:
        """Leaves with the next ask, or a few milliseconds later."""
        if release.ask_id >= self._first_id_of_stream:
            self._outgoing.releases.append(release)
            if self._departure is None:
                self._departure = asyncio.get_running_loop().call_later(RELEASE_WITHIN_S, self._flush)

    def _link_to(self, target: str) -> _RouterLink:
        link: _RouterLink = PersistentLink(
            target,
            METHOD,
            router_pb2.ScheduleRequest,
            router_pb2.ScheduleResponse.FromString,
            on_received=self._received,
            on_up=lambda: self._activate(link),
            on_down=lambda: self._deactivate(link),
            frames=self._frames,
        )
        return link

    def _activate(self, link: _RouterLink) -> None:
        if self._active is not None:
            return
        self._active = link
        self._first_id_of_stream = min(self._pending, default=self._last_id + 1)
        asks = [pending.ask for pending in self._pending.values() if not pending.answer.done()]
        self._outgoing = router_pb2.ScheduleRequest()
        link.send(router_pb2.ScheduleRequest(gateway_id=self._gateway_id, asks=asks))

    def _deactivate(self, link: _RouterLink) -> None:
        if self._active is link:
            self._active = None
            standbys = [other for other in self._links.values() if other.up]
            if standbys:
                self._activate(max(standbys, key=self._preference))

    def _preference(self, link: _RouterLink) -> tuple[bool, bool]:
        peer = self._peers[link.target]
        return not peer.terminating, peer.ready

    def _leave_soon(self) -> None:
        if not self._leaving:
            self._leaving = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._leaving = False
        if self._departure is not None:
            self._departure.cancel()
            self._departure = None
        outgoing, self._outgoing = self._outgoing, router_pb2.ScheduleRequest()
        if self._active is not None and outgoing.ByteSize():
            self._active.send(outgoing)

    def _received(self, messages: Sequence[router_pb2.ScheduleResponse]) -> None:
        for message in messages:
            for decision in message.decisions:
                pending = self._pending.get(decision.ask_id)
                if pending is not None and not pending.answer.done():
                    _decide(pending, decision)
                elif pending is None and decision.HasField("placement"):
                    self.release(
                        router_pb2.Release(
                            ask_id=decision.ask_id, outcome=router_pb2.Release.OUTCOME_CANCELLED
                        )
                    )


def _decide(pending: _Pending, decision: router_pb2.Decision) -> None:
    if decision.HasField("placement"):
        pending.answer.set_result(decision.placement)
    elif decision.HasField("failure"):
        pending.answer.set_exception(FleetError.from_failure(decision.failure))
    else:
        pending.on_waiting(decision.waiting)
