"""One gateway's `Schedule` stream: asks and releases in, the decisions of one tick out in one message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenfleet.core.scheduling import Decision, Loading, Placed, Queued
from tokenfleet.router.ask import Ask
from tokenfleet.router.records import Record
from tokenfleet.router.translate import failure
from tokenfleet.runtime.links import Link
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2, router_pb2

if TYPE_CHECKING:
    from tokenfleet.router.dispatcher import Dispatcher

# Placements of one gateway whose releases are awaited: one that releases nothing costs no more than that.
MOST_PLACED = 100_000

log = get_logger(__name__)


class Session:
    """Knows what its gateway asked and holds, so that a closed stream gives all of it back."""

    def __init__(self, dispatcher: Dispatcher, link: Link[router_pb2.ScheduleResponse]) -> None:
        self.gateway_id = ""
        self._dispatcher = dispatcher
        self._link = link
        self._waiting: dict[int, Ask] = {}
        self._placed: dict[int, tuple[Ask, Placed, Record | None]] = {}
        self._outgoing: router_pb2.ScheduleResponse | None = None

    def received(self, messages: Sequence[router_pb2.ScheduleRequest]) -> None:
        dispatcher = self._dispatcher
        for message in messages:
            if message.gateway_id:
                self.gateway_id = message.gateway_id
            for release in message.releases:
                placed = self._placed.pop(release.ask_id, None)
                if placed is not None:
                    dispatcher.release(*placed, release)
            for cancel in message.cancels:
                self._cancel(cancel.ask_id)
            for ask in message.asks:
                self._ask(ask)
        dispatcher.flush()

    def writable_again(self) -> None:
        self.flush()

    def closed(self, cause: str) -> None:
        log.info(
            "gateway left",
            gateway=self.gateway_id,
            peer=self._link.peer,
            cause=cause,
            waiting=len(self._waiting),
            placed=len(self._placed),
        )
        waiting, self._waiting = self._waiting, {}
        placed, self._placed = self._placed, {}
        self._dispatcher.closed(
            self, waiting.values(), [decision.reservation for _, decision, _ in placed.values()]
        )

    def close(self) -> None:
        self._link.close()

    def decide(self, ask: Ask, decision: Decision, record: Record | None) -> None:
        """Puts a decision into the next message."""
        if isinstance(decision, Placed):
            self._waiting.pop(ask.ask_id, None)
            self._placed[ask.ask_id] = ask, decision, record
            if len(self._placed) > MOST_PLACED:
                del self._placed[next(iter(self._placed))]
            reservation, forecast = decision.reservation, decision.forecast
            placement = self._add(ask.ask_id).placement
            placement.CopyFrom(self._dispatcher.placement(reservation.replica))
            placement.reservation_id = reservation.id
            if forecast is not None:
                placement.predicted_ttft_s = forecast.ttft_s
                placement.predicted_cached_tokens = forecast.cached_tokens
        elif isinstance(decision, Queued):
            self._waiting[ask.ask_id] = ask
            self._add(ask.ask_id).waiting.CopyFrom(router_pb2.Waiting(position=decision.position))
        elif isinstance(decision, Loading):
            if self._link.writable:
                assert isinstance(decision.progress, common_pb2.LoadProgress)
                waiting = router_pb2.Waiting(position=decision.position, load=decision.progress)
                self._add(ask.ask_id).waiting.CopyFrom(waiting)
        else:
            self.fail(ask.ask_id, failure(decision))

    def fail(self, ask_id: int, failure: common_pb2.Failure) -> None:
        """Answers an ask that got no worker."""
        self._waiting.pop(ask_id, None)
        self._add(ask_id).failure.CopyFrom(failure)

    def flush(self) -> None:
        """Sends what was decided since the last time, unless the gateway does not keep up."""
        if self._outgoing is not None and self._link.writable:
            outgoing, self._outgoing = self._outgoing, None
            self._link.send(outgoing)

    def _ask(self, ask: router_pb2.Ask) -> None:
        if ask.ask_id in self._waiting or ask.ask_id in self._placed:
            self._add(ask.ask_id).failure.CopyFrom(
                common_pb2.Failure(
                    reason=common_pb2.REASON_INVALID_ARGUMENT,
                    message=f"ask_id {ask.ask_id} is in use on this stream: give every ask its own",
                    field="ask_id",
                )
            )
            return
        self._dispatcher.ask(self, ask)

    def _cancel(self, ask_id: int) -> None:
        waiting = self._waiting.pop(ask_id, None)
        if waiting is not None:
            self._dispatcher.cancel(waiting)
            return
        placed = self._placed.pop(ask_id, None)
        if placed is not None:
            cancelled = router_pb2.Release(ask_id=ask_id, outcome=router_pb2.Release.OUTCOME_CANCELLED)
            self._dispatcher.release(*placed, cancelled)

    def _add(self, ask_id: int) -> router_pb2.Decision:
        if self._outgoing is None:
            self._outgoing = router_pb2.ScheduleResponse()
            self._dispatcher.touched(self)
        decision = self._outgoing.decisions.add()
        decision.ask_id = ask_id
        return decision
