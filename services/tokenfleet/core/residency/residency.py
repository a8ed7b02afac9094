"""The decisions: what each worker shall load next, and what those who wait are told.

A worker loads one model at a time. What somebody waits for goes before what is merely to be warm. A demand is
met as soon as enough workers hold the model, and hopeless as soon as nobody can: every capable worker failed
(and is in quarantine), or lacks the memory, or there is none, also none that is expected back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

from tokenfleet.core.residency.backoff import Backoff, Quarantine
from tokenfleet.core.residency.demands import Demand, Demands, Settlement
from tokenfleet.core.residency.model import Entry, Failure, Host, HostFacts, LoadOrder, Place, PlaceState

NO_WORKER_RETRY_S = 5.0
# After a load that broke off; by then the watch has broken too, or the worker lives.
REST_S = 0.5


class Residency:
    """All that is known about entries, workers and wishes. Times are the caller's seconds."""

    def __init__(self, draw: Callable[[], float], patience_s: float = 30.0) -> None:
        """`draw` gives jitter in [0, 1); `patience_s` is how long an absent worker is expected back."""
        self.entries: dict[str, Entry] = {}
        self.hosts: dict[str, Host] = {}
        self.backoff = Backoff(draw)
        self._patience_s = patience_s
        self._awaited_since = -math.inf  # when a worker last left whose successor may come to another address
        self._demands = Demands()
        self._withheld: set[tuple[str, str]] = set()  # model and worker that it was unloaded from
        self._pins: dict[str, bool] = {}  # what operators said

    # -- what is told ------------------------------------------------------------------------------

    def catalog(self, entries: Iterable[Entry]) -> None:
        """The whole catalog. A changed entry is tried afresh."""
        told = {entry.name: entry for entry in entries}
        for name, entry in told.items():
            if self.entries.get(name) != entry:
                self.backoff.forgive(name)
        self.entries = told

    def pin(self, model: str, pinned: bool) -> None:
        """An operator's word, which is above the entry's policy."""
        self._pins[model] = pinned

    def pinned(self, model: str) -> bool:
        entry = self.entries.get(model)
        return self._pins.get(model, entry is not None and entry.warm)

    def expect(self, target: str, now: float) -> None:
        """There shall be a worker at that address."""
        self.hosts.setdefault(target, Host(target, seen_at=now))

    def leave(self, target: str, now: float) -> None:
        """There is no worker at that address any more; another may come in its stead."""
        host = self.hosts.pop(target, None)
        if host is not None:
            self._forget_life(host)
            self._awaited_since = now

    def await_workers(self, now: float) -> None:
        """Workers are still being discovered: nobody is to be told that there is none."""
        self._awaited_since = now

    def describe(self, target: str, facts: HostFacts, now: float) -> None:
        """A worker introduced itself or changed."""
        host = self.hosts.setdefault(target, Host(target, seen_at=now))
        if host.facts.worker_id != facts.worker_id:
            self._forget_life(host)
        before = host.places
        host.places = {place.model: place for place in facts.places}
        host.facts, host.connected, host.seen_at = facts, True, now
        for place in host.places.values():
            self._note_unordered_failure(host, before.get(place.model), place, now)

    def lost(self, target: str, now: float) -> None:
        """The watch on a worker broke: what it holds is unknown."""
        host = self.hosts[target]
        if host.connected:
            host.connected, host.seen_at = False, now
            host.places = {}

    def loaded(self, order: LoadOrder, epoch: int) -> None:
        """The worker says that the ordered load is done."""
        host = self._end_load(order)
        if host is not None and host.connected:
            known = host.places.get(order.model)
            memory_bytes = known.memory_bytes if known is not None else 0
            host.places[order.model] = Place(order.model, PlaceState.READY, epoch, memory_bytes)

    def failed(self, order: LoadOrder, reason: str, message: str, now: float) -> None:
        """The worker says that the ordered load failed."""
        self._end_load(order)
        self.backoff.failed(order.model, order.worker_id, reason, message, now)

    def broken_off(self, order: LoadOrder, now: float) -> None:
        """The connection broke during the load: if the worker died, that is its supervisor's matter."""
        host = self._end_load(order)
        if host is not None:
            host.rests_until = now + REST_S

    def withhold(self, model: str, worker_id: str) -> None:
        """An operator takes it off that worker: it is not loaded there again until somebody wants it."""
        self._withheld.add((model, worker_id))

    def unhold(self, model: str, worker_id: str) -> None:
        """It stays there after all."""
        self._withheld.discard((model, worker_id))

    # -- what is wanted ----------------------------------------------------------------------------

    def want(self, model: str, replicas: int, excluded: frozenset[str], now: float) -> Demand:
        """Somebody waits for the model; equal wishes share one demand. The model must have an entry."""
        self._withheld = {pair for pair in self._withheld if pair[0] != model}
        return self._demands.join(model, replicas, excluded, now)

    # -- what follows ------------------------------------------------------------------------------

    def plan(self, now: float) -> tuple[list[LoadOrder], list[Settlement]]:
        """Orders to carry out now, which count as running from here on, and demands that are over."""
        orders: list[LoadOrder] = []
        settlements: list[Settlement] = []
        for demand in self._demands.open():
            settlement = self._pursue(demand, orders, now)
            if settlement is not None:
                self._demands.settled(demand)
                settlements.append(settlement)
        for entry in self.entries.values():
            if self.pinned(entry.name):
                self._keep_warm(entry, orders, now)
        return orders, settlements

    def _pursue(self, demand: Demand, orders: list[LoadOrder], now: float) -> Settlement | None:
        entry = self.entries.get(demand.model)
        if entry is None:
            message = f"the model {demand.model} left the catalog"
            return Settlement(demand, reason="model_not_found", message=message)
        allowed = [host for host in self.hosts.values() if host.facts.worker_id not in demand.excluded]
        holders = [host for host in allowed if host.usable and host.holds(entry.name, PlaceState.READY)]
        if len(holders) >= demand.replicas:
            return Settlement(demand, worker_id=holders[0].facts.worker_id)
        coming = sum(host.connected and host.busy_with(entry.name) for host in allowed)
        fitting = self._fitting(entry, allowed, now)
        wanted = demand.replicas - len(holders) - coming
        for host in fitting[: max(0, wanted)]:
            self._order(entry, host, orders, now)
        if coming or fitting:
            return None
        if holders and not self._expected(entry, now):
            return Settlement(demand, worker_id=holders[0].facts.worker_id)
        return self._hopeless(demand, entry, allowed, now)

    def _keep_warm(self, entry: Entry, orders: list[LoadOrder], now: float) -> None:
        hosts = [
            host for host in self.hosts.values() if (entry.name, host.facts.worker_id) not in self._withheld
        ]
        there = sum(
            host.usable and (host.holds(entry.name, PlaceState.READY) or host.busy_with(entry.name))
            for host in hosts
        )
        wanted = entry.replicas or (0 if entry.warm else 1)
        missing = wanted - there if wanted else len(hosts)
        for host in self._fitting(entry, hosts, now)[: max(0, missing)]:
            self._order(entry, host, orders, now)

    def _fitting(self, entry: Entry, hosts: Iterable[Host], now: float) -> list[Host]:
        """Workers that could load it, the best first: zones that hold few copies, then ample memory."""
        able = [
            host
            for host in hosts
            if self._capable(entry, host)
            and not self.backoff.holds(entry.name, host.facts.worker_id, now)
            and self._has_memory(entry, host)
        ]
        copies = Counter(
            host.facts.zone
            for host in self.hosts.values()
            if host.usable and (host.holds(entry.name, PlaceState.READY) or host.busy_with(entry.name))
        )
        chosen: list[Host] = []
        while able:
            best = min(
                able,
                key=lambda host: (
                    host.loading is not None,
                    copies[host.facts.zone],
                    -host.free_bytes,
                    host.facts.name,
                    host.target,
                ),
            )
            able.remove(best)
            copies[best.facts.zone] += 1
            chosen.append(best)
        return chosen

    def _capable(self, entry: Entry, host: Host) -> bool:
        """It is up, hosts an engine of the entry, and nothing of the model is there."""
        place = host.places.get(entry.name)
        return (
            host.usable
            and host.engine_for(entry) is not None
            and (place is None or place.absent)
            and not host.busy_with(entry.name)
        )

    def _has_memory(self, entry: Entry, host: Host) -> bool:
        need = host.engine_for(entry)
        return need is not None and need.memory_bytes <= host.free_bytes

    def _order(self, entry: Entry, host: Host, orders: list[LoadOrder], now: float) -> None:
        """Orders the load, unless the worker is at another one: then its turn comes with a later plan."""
        need = host.engine_for(entry)
        if host.loading is None and need is not None and now >= host.rests_until:
            host.loading = LoadOrder(entry.name, need.engine, host.target, host.facts.worker_id)
            orders.append(host.loading)

    def _expected(self, entry: Entry, now: float) -> bool:
        """Whether a worker that may be able to is on its way back."""
        return now < self._awaited_since + self._patience_s or any(
            not host.usable
            and now < host.seen_at + self._patience_s
            and (not host.facts.engines or host.engine_for(entry) is not None)
            for host in self.hosts.values()
        )

    def _hopeless(self, demand: Demand, entry: Entry, allowed: list[Host], now: float) -> Settlement | None:
        """Why nobody can load it; None when it is too early to say."""
        quarantine = self._first_quarantine(entry, allowed, now)
        if quarantine is not None:
            retry_after_s = quarantine.until - now
            return Settlement(demand, "", quarantine.reason, quarantine.message, retry_after_s)
        leaving = any(host.usable and host.holds(entry.name, PlaceState.UNLOADING) for host in allowed)
        if leaving or self._expected(entry, now):
            return None
        capable = [host for host in allowed if self._capable(entry, host)]
        if capable:
            return Settlement(demand, "", "out_of_memory", _no_room(entry, capable), NO_WORKER_RETRY_S)
        engines = " or ".join(need.engine for need in entry.engines)
        message = f"no worker that hosts {engines} is there to load {entry.name}"
        return Settlement(demand, "", "no_worker", message, NO_WORKER_RETRY_S)

    def _first_quarantine(self, entry: Entry, allowed: list[Host], now: float) -> Quarantine | None:
        lasting = (
            self.backoff.holds(entry.name, host.facts.worker_id, now)
            for host in allowed
            if self._capable(entry, host)
        )
        return min(filter(None, lasting), key=lambda quarantine: quarantine.until, default=None)

    def _note_unordered_failure(self, host: Host, before: Place | None, now_is: Place, now: float) -> None:
        """A model that broke down by itself, or in a former loader's time, is not loaded again at once."""
        was_failed = before is not None and before.state is PlaceState.FAILED
        if now_is.state is not PlaceState.FAILED or was_failed or host.busy_with(now_is.model):
            return
        worker_id = host.facts.worker_id
        if self.backoff.holds(now_is.model, worker_id, now):
            return  # the order that failed was told first
        message = f"{now_is.model} broke down on {host.facts.name or host.target}"
        failure = now_is.failure or Failure("engine_failed", message)
        self.backoff.failed(now_is.model, worker_id, failure.reason, failure.message, now)

    def _end_load(self, order: LoadOrder) -> Host | None:
        host = self.hosts.get(order.target)
        if host is None or host.loading is not order:
            return None
        host.loading = None
        return host

    def _forget_life(self, host: Host) -> None:
        former = host.facts.worker_id
        self.backoff.forget_worker(former)
        self._withheld = {pair for pair in self._withheld if pair[1] != former}
        host.loading = None
        host.rests_until = 0.0


def _no_room(entry: Entry, hosts: list[Host]) -> str:
    roomiest = max(hosts, key=lambda host: host.free_bytes)
    need = roomiest.engine_for(entry)
    return (
        f"{entry.name} needs {need.memory_bytes if need else 0} bytes, and no worker has so much left: "
        f"the most is {round(roomiest.free_bytes)} on {roomiest.facts.name or roomiest.target}; "
        "unload a model first"
    )
