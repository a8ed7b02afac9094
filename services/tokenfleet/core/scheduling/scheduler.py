"""The scheduler as a whole: events in, decisions out, no clock, no wire.

Its invariant: whenever a replica has room for those who are next, they do not wait. Every event that makes
room (a sample, a release, a reservation that expires, a model that became ready) serves the queue at once. A
new request stands behind those of its class and above who wait, also where it could go and they could not
yet, because their objectives are tighter: otherwise they would wait for a queue that others keep long.
Decisions leave through one callback, in the order in which they are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from tokenfleet.core.queueing import DrainRate, Entry, Lane, Overflow, WaitingQueue
from tokenfleet.core.scheduling.choice import Choice
from tokenfleet.core.scheduling.cold import ColdCost, cold_cost
from tokenfleet.core.scheduling.engines import never_served
from tokenfleet.core.scheduling.fleet import Fleet, ModelLoad, WorkerFacts
from tokenfleet.core.scheduling.load_wishes import LoadWishes
from tokenfleet.core.scheduling.model import SOUND, Device, Outcome, Reservation
from tokenfleet.core.scheduling.policies import Draw, Policy
from tokenfleet.core.scheduling.request import (
    Decision,
    Loading,
    LoadWish,
    Placed,
    Queued,
    Refused,
    Request,
)
from tokenfleet.core.scheduling.reservations import Reservations
from tokenfleet.core.scheduling.scene import Scene, take_scene
from tokenfleet.core.scheduling.speed import StepSpeed

R = TypeVar("R", bound=Request)

# How often the prospects of those who wait without any worker are looked at again.
REVIEW_EVERY_S = 0.25
# Where all that serve a model are full for so long, it is hot: a further copy is wished for.
HOT_AFTER_S = 3.0
# Or for so long, where the wait is longer than a load: those who waited for the first load are gone by then.
CROWDED_AFTER_S = 1.0


@dataclass(slots=True, frozen=True)
class SchedulerLimits:
    """What bounds waiting. Times in seconds."""

    queue_limit: int = 1024  # waiting requests for one model
    patience_s: float = 30.0  # how long a worker that went away is expected back
    engine_queue_ratio: float = 0.125  # of what an engine runs at once, sent there beyond it
    no_worker_retry_after_s: float = 5.0
    least_retry_after_s: float = 1.0
    most_retry_after_s: float = 60.0
    candidates_recorded: int = 16


@dataclass(slots=True, eq=False)
class _Line(Generic[R]):
    """Those who wait for one model."""

    queue: WaitingQueue[R]
    drain: DrainRate
    full_since: float = math.inf  # since when somebody waits though the model is served


class Scheduler(Generic[R]):
    """Decides for each request. `decide` is told every decision, `start_load` which model is wanted where,
    and `stop_load` that nobody waits for it any longer."""

    def __init__(
        self,
        policy: Policy,
        limits: SchedulerLimits,
        *,
        draw: Draw,
        decide: Callable[[R, Decision], None],
        start_load: Callable[[LoadWish], None],
        stop_load: Callable[[LoadWish], None] = lambda _: None,
        reservation_prefix: str = "",
    ) -> None:
        self.fleet = Fleet(limits.engine_queue_ratio, limits.patience_s, policy)
        self.reservations = Reservations(reservation_prefix)
        self.policy = policy
        self._limits = limits
        self._draw = draw
        self._decide = decide
        self._start_load = start_load
        self._stop_load = stop_load
        self._wishes = LoadWishes(limits.patience_s)
        self._lines: dict[str, _Line[R]] = {}
        self._entries: dict[R, Entry[R]] = {}
        self._next_review = 0.0

    # -- requests ----------------------------------------------------------------------------------

    def ask(self, request: R, now: float) -> None:
        """Places, queues or refuses at once."""
        chosen = None if self._comes_after_others(request) else self._choose(request)
        if chosen is not None:
            self._place(request, chosen, now)
        elif (refusal := self._hopeless(request, self._hope(request, now), now)) is not None:
            self._decide(request, refusal)
        else:
            self._enqueue(request, now)

    def cancel(self, request: R) -> None:
        """Takes a waiting request out; nothing happens if it does not wait."""
        entry = self._entries.pop(request, None)
        if entry is not None:
            line = self._lines[request.model]
            line.queue.remove(entry)
            if not len(line.queue):
                line.drain.emptied()

    def release(self, reservation: Reservation, outcome: Outcome, now: float) -> None:
        """Its request ended, and what that says about the worker."""
        if outcome is Outcome.LOST:
            self.fleet.doubt_worker(reservation.replica.worker, now)
        elif outcome is Outcome.NOT_RESIDENT:
            self.fleet.doubt_replica(reservation.replica, now)
        if reservation.counted:
            self.reservations.discount(reservation)
            self._serve(reservation.replica.model, now)

    def depths(self) -> dict[Lane, int]:
        """How many wait, by lane, over all models."""
        lines = tuple(self._lines.values())
        return {lane: sum(line.queue.depth(lane) for line in lines) for lane in Lane}

    @property
    def waiting(self) -> int:
        return len(self._entries)

    def waiting_requests(self) -> list[R]:
        return list(self._entries)

    # -- workers -----------------------------------------------------------------------------------

    def sampled_every(self, target: str, interval_s: float) -> None:
        """How often the worker at that address was asked to tell its load, at most."""
        self.fleet.sampled_every(target, interval_s)
        self.reservations.outlast(interval_s)

    def describe(self, target: str, facts: WorkerFacts, now: float) -> None:
        """A worker introduced itself or changed."""
        self.fleet.describe(target, facts, now)
        for replica in facts.replicas:
            self._serve(replica.model, now)
        self._review(now)

    def sample(
        self,
        target: str,
        loads: Sequence[ModelLoad],
        admitted: Iterable[str],
        age_s: float,
        now: float,
        device: Device = SOUND,
    ) -> None:
        """A worker told its load, which reservations it contains by now, and how its accelerator is."""
        self.reservations.admitted(target, admitted)
        self.fleet.sample(target, loads, age_s, now, device)
        worker = self.fleet.workers.get(target)
        for model in worker.replicas if worker is not None and self._entries else ():
            self._serve(model, now)

    def cache_changed(self, target: str, model: str, stored: Sequence[int], removed: Sequence[int]) -> None:
        """Blocks of prompts came into a worker's prefix cache, or went."""
        replica = self.fleet.replica(target, model)
        if replica is not None:
            self.policy.cache_changed(replica, stored, removed)

    def cache_cleared(self, target: str, model: str) -> None:
        """A worker's prefix cache is empty."""
        replica = self.fleet.replica(target, model)
        if replica is not None:
            self.policy.emptied(replica)

    def lost(self, target: str, now: float) -> None:
        """The watch on a worker broke."""
        self.fleet.lost(target, now)

    # -- loads -------------------------------------------------------------------------------------

    def load_progressed(self, wish: LoadWish, progress: object) -> None:
        """Tells everybody who waits for that load."""
        for position, entry in enumerate(self._waiting_for(wish)):
            self._decide(entry.item, Loading(position, progress))

    def load_succeeded(self, wish: LoadWish, now: float) -> None:
        """The loader says that it is loaded; the worker's own word is what makes it placeable."""
        self._wishes.succeeded(wish, now)

    def load_failed_for_now(self, wish: LoadWish, now: float) -> None:
        """There was nobody to load it; asked again while somebody waits."""
        self._wishes.failed_for_now(wish, now)

    def load_failed(
        self,
        wish: LoadWish,
        reason: str,
        message: str,
        retry_after_s: float,
        now: float,
        missing_bytes: int = 0,
    ) -> None:
        """It cannot be loaded: nobody shall wait for it any longer; for a further copy nobody does."""
        if wish.replicas > 1:
            self._wishes.failed_for_now(wish, now)
            return
        self._wishes.failed(wish)
        for entry in self._waiting_for(wish):
            self.cancel(entry.item)
            refused = self._refuse(entry.item, now, reason, message, retry_after_s)
            self._decide(entry.item, replace(refused, missing_bytes=missing_bytes))

    # -- time --------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """What happens by itself: samples get stale, reservations and patience expire."""
        self.fleet.find_stale(now)
        models = {reservation.replica.model for reservation in self.reservations.expire(now)}
        for model in models:
            self._serve(model, now)
        for line in self._lines.values():
            for entry in line.queue.expire(now):
                self._give_up(line, entry, now)
        if now >= self._next_review:
            self._next_review = now + REVIEW_EVERY_S
            self._review(now)
            for wish in self._wishes.abandoned(now):
                self._stop_load(wish)
            self._wishes.forget_idle(now)

    # -- inside ------------------------------------------------------------------------------------

    def _comes_after_others(self, request: R) -> bool:
        """Whether somebody waits who is to be served before it, and only for room."""
        line = self._lines.get(request.model) if self._entries else None
        return line is not None and any(not entry.item.choosy for entry in line.queue.ahead_of(request.lane))

    def _choose(self, request: R) -> Choice | None:
        return self.policy.choose(request, self.fleet.placeable(request.model), self._draw)

    def _place(self, request: R, choice: Choice, now: float) -> None:
        forecast = choice.forecast
        cold = partial(self._cold_cost, request, choice.replica.speed)
        if forecast is not None and now - choice.replica.since >= HOT_AFTER_S:
            load_s = self.fleet.load_times.expect(request.model)
            if forecast.ttft_s > load_s and forecast.ttft_s > cold().ttft_s:
                self._wish_for_a_copy(request, now)
        scene = self._scene(request, choice, cold)
        why = choice.why + self._copy_asked_for(request)
        cached = 0 if forecast is None else forecast.cached_tokens
        self.policy.placed(request, choice)
        reservation = self.reservations.reserve(
            choice.replica, now, request.prompt_tokens - cached, request.prompt_tokens
        )
        self._decide(request, Placed(reservation, why, scene, now - request.asked_at, forecast))

    def _enqueue(self, request: R, now: float) -> None:
        line = self._lines.get(request.model)
        if line is None:
            line = self._lines[request.model] = _Line(WaitingQueue(self._limits.queue_limit), DrainRate())
        try:
            entry, evicted = line.queue.put(
                request,
                request.lane,
                now,
                request.deadline,
                request.tenant,
                self.policy.expected_tokens(request),
            )
        except Overflow:
            self._decide(request, self._shed(line, request, now))
            return
        line.drain.occupied(now)
        self._entries[request] = entry
        if evicted is not None:
            del self._entries[evicted.item]
            self._decide(evicted.item, self._shed(line, evicted.item, now))
        self._decide(request, Queued(line.queue.position(entry)))

    def _serve(self, model: str, now: float) -> None:
        """Places those who wait for the model, in order, while there is room."""
        line = self._lines.get(model)
        if line is None or not len(line.queue) or not self._has_room(model):
            return
        for entry in line.queue.serving():
            chosen = self._choose(entry.item)
            if chosen is not None:
                line.queue.remove(entry, served=True)
                del self._entries[entry.item]
                line.drain.departed(now, still_waiting=len(line.queue) > 0)
                self._place(entry.item, chosen, now)
            elif not entry.item.choosy:
                return

    def _has_room(self, model: str) -> bool:
        return any(replica.load < replica.capacity for replica in self.fleet.placeable(model))

    def _review(self, now: float) -> None:
        """Asks for loads and gives up hope for those who wait without a worker in sight."""
        for line in self._lines.values():
            self._find_hot(line, now)
            shared: float | None = None  # by all who would go anywhere
            for entry in line.queue:
                request = entry.item
                if request.choosy or shared is None:
                    hope = self._hope(request, now)
                    shared = shared if request.choosy else hope
                else:
                    hope = shared
                refusal = self._hopeless(request, hope, now)
                if refusal is not None:
                    self.cancel(request)
                    self._decide(request, refusal)

    def _find_hot(self, line: _Line[R], now: float) -> None:
        """Where requests wait for places on workers that are all full, for long or for longer than a load."""
        first = next(iter(line.queue), None)
        if first is None or not self._suits_somebody(first.item):
            line.full_since = math.inf
            return
        line.full_since = min(line.full_since, now)
        full_s = now - line.full_since
        backlog_s = line.drain.seconds_to_drain(len(line.queue), now)
        crowded = backlog_s > self.fleet.load_times.expect(first.item.model)
        if full_s >= (CROWDED_AFTER_S if crowded else HOT_AFTER_S):
            self._wish_for_a_copy(first.item, now)

    def _wish_for_a_copy(self, request: R, now: float) -> None:
        wish = self._copy(request)
        if self.fleet.could_load(request.model, request.engines) and self._wishes.wanted(wish, now):
            self._start_load(wish)

    def _copy(self, request: R) -> LoadWish:
        return LoadWish(request.model, replicas=len(self.fleet.placeable(request.model)) + 1)

    def _copy_asked_for(self, request: R) -> str:
        """For whoever wants an explanation."""
        if not len(self._wishes) or not self._wishes.running(self._copy(request)):
            return ""
        load_s = self.fleet.load_times.expect(request.model)
        return f"; a further copy is asked for, which takes {load_s:.1f} s to load"

    def _cold_cost(self, request: R, speed: StepSpeed) -> ColdCost:
        answer = self.policy.expected_tokens(request) - request.prompt_tokens
        load_s = self.fleet.load_times.expect(request.model)
        return cold_cost(load_s, speed.price, request.prompt_tokens, answer)

    def _scene(self, request: R, choice: Choice | None, cold: Callable[[], ColdCost]) -> Scene:
        limit = self._limits.candidates_recorded
        return take_scene(self.fleet, request.model, request.engines, choice, cold, limit)

    def _hope(self, request: R, now: float) -> float:
        """Until when waiting makes sense; on the way, asks for the model to be loaded."""
        if self._suits_somebody(request):
            return math.inf
        until = self.fleet.expected_until(request.model, request.excluded, request.asked_at, now)
        if self.fleet.could_load(request.model, request.engines):
            wish = self._wish(request)
            if self._wishes.wanted(wish, now):
                self._start_load(wish)
            until = max(until, self._wishes.hope_until(wish))
        return until

    def _hopeless(self, request: R, hope_until: float, now: float) -> Refused | None:
        """The refusal for a request that waits in vain."""
        if request.features and self._lacks_features(request):
            names = ", ".join(sorted(request.features))
            return self._refuse(
                request, now, "unsupported", f"no worker of {request.model} offers {names}", 0.0
            )
        if hope_until > now:
            return None
        never = never_served(request.model, request.engines, self.fleet.engines())
        if never:
            return self._refuse(request, now, "no_worker", never, 0.0)
        message = f"no worker is ready for {request.model}, nor expected; retry later"
        return self._refuse(request, now, "no_worker", message, self._limits.no_worker_retry_after_s)

    def _lacks_features(self, request: R) -> bool:
        placeable = self.fleet.placeable(request.model)
        return bool(placeable) and not any(request.features <= replica.features for replica in placeable)

    def _suits_somebody(self, request: R) -> bool:
        placeable = self.fleet.placeable(request.model)
        return any(map(request.suits, placeable)) if request.choosy else bool(placeable)

    def _wish(self, request: R) -> LoadWish:
        return LoadWish(request.model, self.fleet.still_serving(request.model, request.excluded))

    def _waiting_for(self, wish: LoadWish) -> list[Entry[R]]:
        line = self._lines.get(wish.model)
        if line is None or wish.replicas > 1:
            return []
        return [
            entry
            for entry in line.queue
            if not self._suits_somebody(entry.item) and self._wish(entry.item) == wish
        ]

    def _give_up(self, line: _Line[R], entry: Entry[R], now: float) -> None:
        """Its deadline came while it waited."""
        del self._entries[entry.item]
        if not len(line.queue):
            line.drain.emptied()
        request = entry.item
        wait = f"waited {now - entry.since:.1f} s, until the deadline,"
        if self._suits_somebody(request):
            message = f"{wait} for a place on a worker of {request.model}"
            refused = self._refuse(request, now, "deadline_exceeded", message, self._retry_after(line, now))
        else:
            message = f"{wait} for a worker to be ready for {request.model}"
            refused = self._refuse(request, now, "no_worker", message, self._limits.no_worker_retry_after_s)
        self._decide(request, refused)

    def _shed(self, line: _Line[R], request: R, now: float) -> Refused:
        message = f"{len(line.queue)} requests wait for {request.model} already, which is the limit"
        return self._refuse(request, now, "queue_full", message, self._retry_after(line, now))

    def _retry_after(self, line: _Line[R], now: float) -> float:
        seconds = line.drain.seconds_to_drain(len(line.queue), now)
        return min(max(seconds, self._limits.least_retry_after_s), self._limits.most_retry_after_s)

    def _refuse(self, request: R, now: float, reason: str, message: str, retry_after_s: float) -> Refused:
        waited_s = max(0.0, now - request.asked_at)
        known = next(iter(self.fleet.placeable(request.model)), None)
        cold = partial(self._cold_cost, request, StepSpeed() if known is None else known.speed)
        message += self._copy_asked_for(request)
        scene = self._scene(request, None, cold)
        return Refused(reason, message, retry_after_s, waited_s, scene)
