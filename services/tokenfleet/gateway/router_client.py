"""Asking the routers: each model has a home among them, and asks survive the router that they were put to.

The home of a model is the live router that rendezvous hashing puts first, so all gateways that see the same
routers agree on it without a word between them, and one router's queue holds all that waits for the model:
its bound and its fairness between tenants are exact. A router is live for a gateway while its stream stands
and discovery does not say that it is about to go. When one dies or leaves, only its models get another home;
what it had not decided is put to that one, in the order in which it was first asked. When it comes back, its
models return, and what still waits for them elsewhere is taken back there and asked here.

A stream fences: each time that an ask is put to a router it gets a new `ask_id`, which belongs to that stream
alone. A placement that arrives for an id that was taken back is released as cancelled where it was made, and
a release goes to the stream that placed, or nowhere if that has ended: the router released all with it.

Two gateways can disagree about who is live, for as long as one of them has noticed and the other has not, or
a network lies between one of them and a router. Then a model has two queues: each is bounded and fair in
itself, together they may hold twice the limit, and turns are fair among the requests of each. Both routers
see every worker's load, so neither fills what the other has filled for longer than a load sample takes. No
request is lost or decided twice by it, and the next sight of the truth ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import xxhash

from tokenfleet.gateway.metrics import GatewayMetrics
from tokenfleet.gateway.router_link import PendingAsk, RouterLink
from tokenfleet.runtime.discovery import Peer
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import router_pb2

LOST, MOVED = "lost", "moved"


class RouterClient:
    """Places sequences, and tells what became of them."""

    def __init__(self, gateway_id: str, metrics: GatewayMetrics, *, frames: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._gateway_id = gateway_id
        self._metrics = metrics
        self._frames = frames
        self._routers: dict[str, RouterLink] = {}
        self._homes: dict[str, RouterLink] = {}  # by model, for the present set of live routers
        self._stopping: set[asyncio.Task[None]] = set()
        self._homeless: list[PendingAsk] = []  # asked while no router was up
        self._placed_by: dict[int, RouterLink] = {}
        self._last_id = 0

    @property
    def ready(self) -> bool:
        return any(router.up for router in self._routers.values())

    async def stop(self) -> None:
        await asyncio.gather(*(router.stop() for router in self._routers.values()), *self._stopping)

    def peer_came(self, peer: Peer) -> None:
        """There shall be a router at that address."""
        router = self._routers[peer.target] = RouterLink(
            peer,
            self._gateway_id,
            on_received=self._received,
            on_up=lambda router: self._settle(),
            on_down=self._lost,
            frames=self._frames,
        )
        router.start()

    def peer_changed(self, peer: Peer) -> None:
        """A router that is to go keeps its stream until it ends it, and is asked nothing more."""
        self._routers[peer.target].peer = peer
        self._settle()

    def peer_left(self, target: str) -> None:
        """Whatever it has not decided is asked of another."""
        router = self._routers.pop(target)
        stopping = asyncio.create_task(router.stop())
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)
        self._lost(router)

    async def place(
        self, ask: router_pb2.Ask, on_waiting: Callable[[router_pb2.Waiting], FleetError | None]
    ) -> router_pb2.Placement:
        """A worker for the ask, whose `ask_id` is then the one to release. Raises FleetError when shed.

        `on_waiting` is told what the ask waits for, and may answer why that is in vain.
        """
        allowed_ms = ask.context.deadline_ms
        deadline = self._loop.time() + allowed_ms / 1000 if allowed_ms else 0.0
        pending = PendingAsk(ask, self._loop.create_future(), on_waiting, deadline)
        self._put(pending)
        try:
            return await pending.answer
        except asyncio.CancelledError:
            self._withdraw(pending)
            raise

    def release(self, release: router_pb2.Release) -> None:
        """Goes to the stream that placed, if it still stands."""
        router = self._placed_by.pop(release.ask_id, None)
        if router is not None:
            router.release(release)

    def _put(self, pending: PendingAsk) -> None:
        """Asks the model's home, under an id that nobody has seen."""
        ask = pending.ask
        self._last_id += 1
        ask.ask_id = self._last_id
        home = self._home(ask.model)
        if home is None:
            pending.router = None
            self._homeless.append(pending)
            return
        home.ask(pending)
        self._metrics.asked(home.target)

    def _put_again(self, asks: list[PendingAsk], cause: str) -> None:
        now = self._loop.time()
        for pending in asks:
            if pending.deadline:
                pending.ask.context.deadline_ms = max(1, round((pending.deadline - now) * 1000))
            self._put(pending)
            self._metrics.reasked(cause)

    def _withdraw(self, pending: PendingAsk) -> None:
        """Its request is gone. Its answer may have come in this very turn of the loop."""
        ask_id, router = pending.ask.ask_id, pending.router
        if router is None:
            self._homeless = [other for other in self._homeless if other is not pending]
        elif ask_id in router.pending or self._placed_by.pop(ask_id, None) is not None:
            router.cancel(ask_id)

    def _home(self, model: str) -> RouterLink | None:
        home = self._homes.get(model)
        if home is None:
            live = self._live()
            if not live:
                return None
            home = self._homes[model] = max(live, key=lambda router: affinity(router.target, model))
        return home

    def _live(self) -> list[RouterLink]:
        """Those that are up; of them those that are to stay, if there are any."""
        up = [router for router in self._routers.values() if router.up]
        best = max((router.standing for router in up), default=None)
        return [router for router in up if router.standing == best]

    def _settle(self) -> None:
        """Who is live has changed: what waits elsewhere than at its model's home moves there."""
        self._homes.clear()
        homeless, self._homeless = self._homeless, []
        moving = [
            pending
            for router in self._routers.values()
            for pending in router.pending.values()
            if self._home(pending.ask.model) is not router
        ]
        for pending in moving:
            assert pending.router is not None
            pending.router.cancel(pending.ask.ask_id)
        moving.sort(key=lambda pending: pending.ask.ask_id)
        self._put_again(moving, MOVED)
        self._put_again(homeless, LOST)

    def _lost(self, router: RouterLink) -> None:
        for ask_id in router.placed:
            self._placed_by.pop(ask_id, None)
        undecided = router.forget()
        self._settle()
        self._put_again(undecided, LOST)
        if router.target not in self._routers:
            self._metrics.router_left(router.target)

    def _received(self, router: RouterLink, message: router_pb2.ScheduleResponse) -> None:
        for decision in message.decisions:
            pending = router.pending.get(decision.ask_id)
            if pending is None:
                if decision.HasField("placement"):
                    router.release(
                        router_pb2.Release(
                            ask_id=decision.ask_id, outcome=router_pb2.Release.OUTCOME_CANCELLED
                        )
                    )
            elif decision.HasField("waiting"):
                in_vain = pending.on_waiting(decision.waiting)
                if in_vain is not None and not pending.answer.done():
                    self._withdraw(pending)
                    pending.answer.set_exception(in_vain)
            else:
                del router.pending[decision.ask_id]
                self._decide(router, pending, decision)

    def _decide(self, router: RouterLink, pending: PendingAsk, decision: router_pb2.Decision) -> None:
        if decision.HasField("failure"):
            if not pending.answer.done():
                pending.answer.set_exception(FleetError.from_failure(decision.failure))
            return
        router.placed.add(decision.ask_id)
        self._placed_by[decision.ask_id] = router
        if pending.answer.done():  # cancelled, and its task has not run yet
            self.release(
                router_pb2.Release(ask_id=decision.ask_id, outcome=router_pb2.Release.OUTCOME_CANCELLED)
            )
        else:
            pending.answer.set_result(decision.placement)


def affinity(target: str, model: str) -> int:
    """The model's home is the live router for which this is greatest, on every gateway."""
    return xxhash.xxh3_64_intdigest(f"{target}\n{model}".encode())
