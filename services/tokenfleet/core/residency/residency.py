"""All that is known of models and workers, and what is wanted of them.

What happens is told in plain calls; `plan` answers what follows (see `planning`). Who uses a model is the
worker's to know: what it tells of that is used to choose, and an order to unload says how long the model was
idle as far as is known here, so that the worker can contradict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tokenfleet.core.residency.backoff import Backoff
from tokenfleet.core.residency.demands import Demand, Demands, Settlement
from tokenfleet.core.residency.eviction import POLICIES, EvictionPolicy
from tokenfleet.core.residency.model import (
    Entry,
    Failure,
    Host,
    HostFacts,
    LoadOrder,
    Place,
    PlaceState,
    UnloadOrder,
    Use,
)
from tokenfleet.core.residency.planning import Planner
from tokenfleet.core.residency.popularity import Popularity

# After a load that broke off; by then the watch has broken too, or the worker lives.
REST_S = 0.5
# For how long it is remembered that a model lacked memory.
WANT_S = 120.0


class Limits(NamedTuple):
    """What bounds changes. Times in seconds."""

    patience_s: float = 30.0  # how long an absent worker is expected back
    min_residency_s: float = 10.0  # for which a model stays, and at least as long as its load took
    surplus_idle_s: float = 300.0  # after which copies beyond the first go
    idle_s: float = 0.0  # after which any unpinned model goes; 0: when memory is needed


class Shortage(NamedTuple):
    """A model that lacks memory: what it would take on an engine's worker."""

    engine: str
    bytes: int
    until: float


class Plan(NamedTuple):
    """Orders to carry out now, which count as running from here on, and demands that are over."""

    loads: list[LoadOrder]
    unloads: list[UnloadOrder]
    settlements: list[Settlement]


class Residency:
    """Entries, workers, use and wishes. Times are the caller's seconds."""

    def __init__(
        self, draw: Callable[[], float], limits: Limits | None = None, policy: str = "demand"
    ) -> None:
        """`draw` gives jitter in [0, 1)."""
        self.limits = limits or Limits()
        self.policy: EvictionPolicy = POLICIES[policy]()
        self.entries: dict[str, Entry] = {}
        self.hosts: dict[str, Host] = {}
        self.backoff = Backoff(draw)
        self.demands = Demands()
        self.popularity = Popularity()
        self.retired: set[str] = set()  # models that left the catalog
        self.awaited_since = -math.inf  # when a worker last left whose successor may come to another address
        self._withheld: set[tuple[str, str]] = set()  # model and worker that it was unloaded from
        self._pins: dict[str, bool] = {}  # what operators said
        self._measured: dict[tuple[str, str], int] = {}  # bytes by model and engine
        self._shortages: dict[str, Shortage] = {}

    # -- what is told ------------------------------------------------------------------------------

    def catalog(self, entries: Iterable[Entry]) -> None:
        """The whole catalog. A changed entry is tried afresh; one that is gone is not kept loaded."""
        told = {entry.name: entry for entry in entries}
        for name, entry in told.items():
            if self.entries.get(name) != entry:
                self.backoff.forgive(name)
        self.retired |= self.entries.keys() - told.keys()
        self.retired -= told.keys()
        self.entries = told

    def pin(self, model: str, pinned: bool) -> None:
        """An operator's word, which is above the entry's policy."""
        self._pins[model] = pinned

    def expect(self, target: str, now: float) -> None:
        """There shall be a worker at that address."""
        self.hosts.setdefault(target, Host(target, seen_at=now))

    def leave(self, target: str, now: float) -> None:
        """There is no worker at that address any more; another may come in its stead."""
        host = self.hosts.pop(target, None)
        if host is not None:
            self._forget_life(host)
            self.awaited_since = now

    def await_workers(self, now: float) -> None:
        """Workers are still being discovered: nobody is to be told that there is none."""
        self.awaited_since = now

    def describe(self, target: str, facts: HostFacts, now: float) -> None:
        """A worker introduced itself or changed."""
        host = self.hosts.setdefault(target, Host(target, seen_at=now))
        if host.facts.worker_id != facts.worker_id:
            self._forget_life(host)
        before = host.places
        host.places = {place.model: place for place in facts.places}
        host.facts, host.connected, host.seen_at = facts, True, now
        for place in host.places.values():
            self._note_place(host, place, now)
            self._note_unordered_failure(host, before.get(place.model), place, now)
        host.uses = {model: use for model, use in host.uses.items() if model in host.places}

    def used(self, target: str, model: str, running: int, idle_s: float, arrivals: int, now: float) -> None:
        """A worker's sample: who runs, since when nobody does, and how many came since it was loaded."""
        host = self.hosts.get(target)
        use = host.uses.get(model) if host is not None else None
        if use is None:
            return
        new = arrivals - use.arrivals
        if new > 0:
            self.popularity.came(model, new, now)
        use.arrivals = arrivals
        use.running = running
        use.last_used = now if running else now - idle_s

    def sampled(self, target: str, now: float) -> None:
        """All of a worker's sample is told."""
        host = self.hosts.get(target)
        if host is not None:
            host.sampled_at = now

    def lost(self, target: str, now: float) -> None:
        """The watch on a worker broke: what it holds is unknown."""
        host = self.hosts[target]
        if host.connected:
            host.connected, host.seen_at = False, now
            host.places = {}
            host.claim = None

    def loaded(self, order: LoadOrder, epoch: int, now: float) -> None:
        """The worker says that the ordered load is done."""
        host = self._end_load(order)
        if host is None:
            return
        if not order.wake:
            self.popularity.loaded(order.model, now - host.load_began)
        self._shortages.pop(order.model, None)
        if host.connected:
            known = host.places.get(order.model)
            place = Place(order.model, PlaceState.READY, epoch, order.bytes, engine=order.engine)
            if known is not None:
                place.memory_bytes, place.sleep = known.memory_bytes or order.bytes, known.sleep
            host.places[order.model] = place
            self._note_place(host, place, now)

    def failed(self, order: LoadOrder, reason: str, message: str, now: float) -> None:
        """The worker says that the ordered load failed."""
        self._end_load(order)
        self.backoff.failed(order.model, order.worker_id, reason, message, now)

    def broken_off(self, order: LoadOrder, now: float) -> None:
        """The connection broke during the load: if the worker died, that is its supervisor's matter."""
        host = self._end_load(order)
        if host is not None:
            host.rests_until = now + REST_S

    def unloaded(self, order: UnloadOrder) -> None:
        """The worker let go of it."""
        host = self._end_unload(order)
        place = host.places.get(order.model) if host is not None else None
        if host is None or place is None or place.epoch != order.epoch:
            return
        if order.sleep:
            place.state = PlaceState.ASLEEP
        else:
            del host.places[order.model]

    def kept(self, order: UnloadOrder, now: float) -> None:
        """The worker refused, or was not reached: what is known of it is out of date until it speaks."""
        host = self._end_unload(order)
        if host is not None:
            host.doubted_at = now

    def withhold(self, model: str, worker_id: str) -> None:
        """An operator takes it off that worker: it is not loaded there again until somebody wants it."""
        self._withheld.add((model, worker_id))

    def unhold(self, model: str, worker_id: str) -> None:
        """It stays there after all."""
        self._withheld.discard((model, worker_id))

    # -- what is wanted ----------------------------------------------------------------------------

    def want(
        self, model: str, replicas: int, excluded: frozenset[str], now: float, deadline: float = math.inf
    ) -> Demand:
        """Somebody waits for the model; equal wishes share one demand. The model must have an entry."""
        self._withheld = {pair for pair in self._withheld if pair[0] != model}
        return self.demands.join(model, replicas, excluded, now, deadline)

    def forsake(self, demand: Demand) -> None:
        """Nobody waits for it any more. What was ordered for it goes on."""
        self.demands.settled(demand)

    def plan(self, now: float) -> Plan:
        """What follows from all that is known."""
        return Plan(*Planner(self, now).plan())

    # -- what is known -----------------------------------------------------------------------------

    def pinned(self, model: str) -> bool:
        entry = self.entries.get(model)
        return self._pins.get(model, entry is not None and entry.warm)

    def keeps(self, entry: Entry) -> int:
        """How many workers shall hold it whatever the demand; -1: all that can."""
        if not self.pinned(entry.name):
            return 0
        return entry.replicas or (-1 if entry.warm else 1)

    def withheld(self, model: str, host: Host) -> bool:
        return (model, host.facts.worker_id) in self._withheld

    def need_bytes(self, entry: Entry, host: Host) -> int:
        """What the budget of the worker must have free: by the entry, or by what was measured, if more."""
        need = host.engine_for(entry)
        if need is None:
            return 0
        measured = self._measured.get((entry.name, need.engine), 0)
        place = host.places.get(entry.name)
        return max(need.memory_bytes, measured) - (place.held_bytes if place is not None else 0)

    def short_of(self, entry: Entry, host: Host, now: float) -> None:
        """It is wanted, and that worker is the one that comes closest to having the memory."""
        need = host.engine_for(entry)
        if need is not None:
            self._shortages[entry.name] = Shortage(need.engine, self.need_bytes(entry, host), now + WANT_S)

    def shortages(self, now: float) -> dict[str, Shortage]:
        """Models that lack memory somewhere: what an autoscaler, or a person, may want to know."""
        return {
            name: one
            for name, one in tuple(self._shortages.items())
            if now < one.until and name in self.entries
        }

    # -- inside ------------------------------------------------------------------------------------

    def _note_place(self, host: Host, place: Place, now: float) -> None:
        if place.state is not PlaceState.READY:
            return
        if place.memory_bytes and place.engine:
            self._measured[place.model, place.engine] = place.memory_bytes
        use = host.uses.get(place.model)
        if use is None or use.epoch != place.epoch:
            took_s = self.popularity.load_s(place.model, 0)
            stays_s = max(self.limits.min_residency_s, took_s) if self.limits.min_residency_s else 0.0
            host.uses[place.model] = Use(place.epoch, now, now, held_to=now + stays_s)

    def _note_unordered_failure(self, host: Host, before: Place | None, now_is: Place, now: float) -> None:
        """A model that broke down by itself, or in a former loader's time, is not loaded again at once."""
        was_failed = before is not None and before.state is PlaceState.FAILED
        if now_is.state is not PlaceState.FAILED or was_failed or host.busy_with(now_is.model):
            return
        worker_id = host.facts.worker_id
        if self.backoff.holds(now_is.model, worker_id, now):
            return  # the order that failed was told first
        failure = now_is.failure or Failure("engine_failed", f"{now_is.model} broke down on {host.name}")
        self.backoff.failed(now_is.model, worker_id, failure.reason, failure.message, now)

    def _end_load(self, order: LoadOrder) -> Host | None:
        host = self.hosts.get(order.target)
        if host is None or host.loading is not order:
            return None
        host.loading = None
        return host

    def _end_unload(self, order: UnloadOrder) -> Host | None:
        host = self.hosts.get(order.target)
        if host is None or host.unloading.get(order.model) is not order:
            return None
        del host.unloading[order.model]
        return host

    def _forget_life(self, host: Host) -> None:
        former = host.facts.worker_id
        self.backoff.forget_worker(former)
        self._withheld = {pair for pair in self._withheld if pair[1] != former}
        host.loading = host.claim = None
        host.unloading, host.uses = {}, {}
        host.rests_until = 0.0
