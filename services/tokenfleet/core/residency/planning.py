"""What each worker shall load and let go of next, and what those who wait are told.

A worker loads one model at a time. What somebody waits for goes before what is merely to be kept. A demand is
met as soon as enough workers hold the model, and hopeless as soon as nobody can: every capable worker failed
(and is in quarantine), or could not have the memory even if everything unpinned went, or there is none, also
none that is expected back. Between these it waits: for a load, for memory in use, for a model that was loaded
only just now. That last is what bounds thrashing: where more is asked for than fits, models take turns of at
least the minimum residency, and who cannot wait so long is told why.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenfleet.core.residency.backoff import Quarantine
from tokenfleet.core.residency.demands import Demand, Settlement
from tokenfleet.core.residency.eviction import Clearance
from tokenfleet.core.residency.model import Claim, Entry, Host, LoadOrder, PlaceState, UnloadOrder
from tokenfleet.core.residency.room import Room

if TYPE_CHECKING:
    from tokenfleet.core.residency.residency import Residency

NO_WORKER_RETRY_S = 5.0


@dataclass(slots=True, frozen=True)
class Prospect:
    """A worker that could load a model: at once, after some others went, or (no clearance) later."""

    host: Host
    bytes: int
    clearance: Clearance | None
    own_s: float  # until it is there, once there is room and it is its turn
    at: float  # when there is room and it is its turn, as far as is known

    @property
    def at_once(self) -> bool:
        return self.clearance is not None and not self.host.busy


class Planner:
    """One plan. Orders take effect on the workers' records at once, so that what follows sees them."""

    def __init__(self, residency: Residency, now: float) -> None:
        self._residency = residency
        self._now = now
        self._room = Room(residency, now)
        self._loads: list[LoadOrder] = []
        self._unloads: list[UnloadOrder] = []
        self._settlements: list[Settlement] = []

    def plan(self) -> tuple[list[LoadOrder], list[UnloadOrder], list[Settlement]]:
        residency = self._residency
        for host in residency.hosts.values():
            self._follow_claim(host)
        for demand in residency.demands.open():
            settlement = self._pursue(demand)
            if settlement is not None:
                residency.demands.settled(demand)
                self._settlements.append(settlement)
        for entry in residency.entries.values():
            if residency.pinned(entry.name):
                self._keep(entry)
        for order in self._room.dispensable():
            self._unload(order)
        return self._loads, self._unloads, self._settlements

    # -- demands -----------------------------------------------------------------------------------

    def _pursue(self, demand: Demand) -> Settlement | None:
        residency, now = self._residency, self._now
        entry = residency.entries.get(demand.model)
        if entry is None:
            message = f"the model {demand.model} left the catalog"
            return Settlement(demand, reason="model_not_found", message=message)
        allowed = [host for host in residency.hosts.values() if host.facts.worker_id not in demand.excluded]
        holders = [host for host in allowed if host.serves(entry.name)]
        if len(holders) >= demand.replicas:
            return Settlement(demand, worker_id=holders[0].facts.worker_id)
        coming = sum(host.connected and host.awaits(entry.name) for host in allowed)
        prospects = self._prospects(entry, allowed, extra=bool(holders))
        for prospect in prospects[: max(0, demand.replicas - len(holders) - coming)]:
            coming += self._act(entry, prospect)
        if coming or prospects:
            self._tell_what_it_waits_for(demand, prospects[0] if not coming else None)
            return self._too_late(demand) if now >= demand.deadline else None
        if holders and not self._expected(entry):
            return Settlement(demand, worker_id=holders[0].facts.worker_id)
        return self._hopeless(demand, entry, allowed)

    def _tell_what_it_waits_for(self, demand: Demand, prospect: Prospect | None) -> None:
        demand.waits_for, demand.ready_at = "", math.inf
        if prospect is None:
            cleared = [host.name for host in self._residency.hosts.values() if host.clears_for(demand.model)]
            demand.waits_for = f"memory is being cleared on {cleared[0]}" if cleared else ""
            return
        host = prospect.host
        demand.ready_at = prospect.at + prospect.own_s
        if host.busy:
            demand.waits_for = f"{host.name} is at another load"
        elif prospect.clearance is None:
            entry = self._residency.entries[demand.model]
            self._residency.short_of(entry, host, self._now)
            demand.waits_for = f"memory on {host.name} is in use or was taken only just now"

    def _too_late(self, demand: Demand) -> Settlement:
        waited_s = self._now - demand.since
        what = demand.waits_for or "its load is not done"
        message = f"{demand.model} could not be had within {waited_s:.1f} s: {what}"
        later_s = demand.ready_at - self._now
        retry_after_s = later_s if 0 < later_s < math.inf else NO_WORKER_RETRY_S
        return Settlement(demand, "", "deadline_exceeded", message, retry_after_s)

    def _hopeless(self, demand: Demand, entry: Entry, allowed: list[Host]) -> Settlement | None:
        """Why nobody can load it; None when it is too early to say."""
        now = self._now
        quarantine = self._first_quarantine(entry, allowed)
        if quarantine is not None:
            retry_after_s = quarantine.until - now
            return Settlement(demand, "", quarantine.reason, quarantine.message, retry_after_s)
        leaving = any(host.usable and host.holds(entry.name, PlaceState.UNLOADING) for host in allowed)
        if leaving or self._expected(entry):
            return None
        capable = [host for host in allowed if self._capable(entry, host)]
        if capable:
            message, missing = self._no_room(entry, capable)
            return Settlement(demand, "", "out_of_memory", message, NO_WORKER_RETRY_S, missing)
        engines = " or ".join(need.engine for need in entry.engines)
        message = f"no worker that hosts {engines} is there to load {entry.name}"
        return Settlement(demand, "", "no_worker", message, NO_WORKER_RETRY_S)

    def _no_room(self, entry: Entry, hosts: list[Host]) -> tuple[str, int]:
        """Why, and by how many bytes. Also leaves word for whoever adds workers."""
        residency = self._residency
        roomiest = max(hosts, key=self._room.most_bytes)
        need = residency.need_bytes(entry, roomiest)
        most = max(0, round(self._room.most_bytes(roomiest)))
        residency.short_of(entry, roomiest, self._now)
        pinned = roomiest.facts.memory_budget_bytes - most
        kept = f", because pinned models keep {pinned}" if pinned > 0 else ""
        message = (
            f"{entry.name} needs {need} bytes, and no worker could have so much for it: "
            f"the most is {most} on {roomiest.name}{kept}; add a worker with more memory for "
            f"{' or '.join(one.engine for one in entry.engines)}, or unpin a model"
        )
        return message, max(0, need - most)

    def _first_quarantine(self, entry: Entry, allowed: list[Host]) -> Quarantine | None:
        backoff = self._residency.backoff
        lasting = (
            backoff.holds(entry.name, host.facts.worker_id, self._now)
            for host in allowed
            if self._capable(entry, host)
        )
        return min(filter(None, lasting), key=lambda quarantine: quarantine.until, default=None)

    def _expected(self, entry: Entry) -> bool:
        """Whether a worker that may be able to is on its way back."""
        patience_s, now = self._residency.limits.patience_s, self._now
        return now < self._residency.awaited_since + patience_s or any(
            not host.usable
            and now < host.seen_at + patience_s
            and (not host.facts.engines or host.engine_for(entry) is not None)
            for host in self._residency.hosts.values()
        )

    # -- what is kept loaded -----------------------------------------------------------------------

    def _keep(self, entry: Entry) -> None:
        residency = self._residency
        hosts = [host for host in residency.hosts.values() if not residency.withheld(entry.name, host)]
        there = sum(host.usable and (host.serves(entry.name) or host.awaits(entry.name)) for host in hosts)
        keeps = residency.keeps(entry)
        missing = len(hosts) if keeps < 0 else keeps - there
        if missing > 0:
            for prospect in self._prospects(entry, hosts)[:missing]:
                self._act(entry, prospect)

    # -- which worker ------------------------------------------------------------------------------

    def _prospects(self, entry: Entry, hosts: Iterable[Host], *, extra: bool = False) -> list[Prospect]:
        """Workers that could load it, the best first. `extra`: a further copy, at no real loss to others."""
        able = [
            prospect
            for host in hosts
            if self._capable(entry, host)
            and not self._residency.backoff.holds(entry.name, host.facts.worker_id, self._now)
            and (prospect := self._prospect(entry, host, extra)) is not None
        ]
        copies = Counter(
            host.facts.zone
            for host in self._residency.hosts.values()
            if host.usable and (host.serves(entry.name) or host.awaits(entry.name))
        )
        chosen: list[Prospect] = []
        while able:
            best = min(able, key=lambda prospect: self._rank(entry, prospect, copies))
            able.remove(best)
            copies[best.host.facts.zone] += 1
            chosen.append(best)
        return chosen

    def _capable(self, entry: Entry, host: Host) -> bool:
        """It is up, hosts an engine of the entry, and nothing of the model is there."""
        place = host.places.get(entry.name)
        return (
            host.usable
            and host.engine_for(entry) is not None
            and (place is None or place.absent)
            and not host.awaits(entry.name)
        )

    def _prospect(self, entry: Entry, host: Host, extra: bool) -> Prospect | None:
        """None when it is no use to wait for that worker."""
        need = self._residency.need_bytes(entry, host)
        if need > self._room.most_bytes(host):
            return None
        at = self._room.turn_at(host)
        lacking = need - self._room.free_bytes(host)
        clearance = self._room.clearance(host, lacking, entry.name, extra=extra)
        if clearance is None:
            if extra:
                return None
            at = max(at, self._room.clear_at(host, lacking, entry.name))
        return Prospect(host, need, clearance, self._own_s(entry, host), at)

    def _own_s(self, entry: Entry, host: Host) -> float:
        place = host.places.get(entry.name)
        if place is not None and place.state is PlaceState.ASLEEP and place.sleep is not None:
            return place.sleep.wake_s
        return self._residency.popularity.load_s(entry.name, self._residency.need_bytes(entry, host))

    def _rank(self, entry: Entry, prospect: Prospect, copies: Counter[str]) -> tuple[object, ...]:
        host, clearance = prospect.host, prospect.clearance
        asleep = host.holds(entry.name, PlaceState.ASLEEP)
        rest = (copies[host.facts.zone], -host.free_bytes, host.facts.name, host.target)
        if self._residency.policy.name == "lru":
            cost = math.inf if clearance is None else clearance.cost
            return (clearance is None, host.busy, not asleep, cost, *rest)
        if clearance is None:
            return (True, prospect.at, *rest)
        wait_s = prospect.at - self._now + prospect.own_s
        rate = self._residency.popularity.rate(entry.name, self._now)
        return (False, clearance.cost + wait_s * (1 + rate * wait_s / 2), *rest)

    # -- orders ------------------------------------------------------------------------------------

    def _act(self, entry: Entry, prospect: Prospect) -> bool:
        """Orders the load, or clears memory for it; nothing, if that worker's turn comes later."""
        host = prospect.host
        need = host.engine_for(entry)
        if need is None or not prospect.at_once or host.claim is not None or self._now < host.rests_until:
            return False
        assert prospect.clearance is not None
        claim = Claim(entry.name, need.engine, prospect.bytes)
        if not prospect.clearance.victims:
            self._load(host, claim)
            return True
        host.claim = claim
        for victim in prospect.clearance.victims:
            self._unload(self._room.order(host, victim, "memory", entry.name))
        return True

    def _follow_claim(self, host: Host) -> None:
        """Memory was being cleared: there is enough now, or it takes another plan."""
        claim = host.claim
        leaving = any(place.state is PlaceState.UNLOADING for place in host.places.values())
        if claim is None or leaving or host.unloading or host.busy:
            return
        host.claim = None
        wanted = self._residency.demands.wanted(claim.model) or self._residency.pinned(claim.model)
        if wanted and host.usable and claim.bytes <= host.free_bytes and self._now >= host.rests_until:
            self._load(host, claim)

    def _load(self, host: Host, claim: Claim) -> None:
        wake = host.holds(claim.model, PlaceState.ASLEEP)
        order = LoadOrder(claim.model, claim.engine, host.target, host.facts.worker_id, claim.bytes, wake)
        host.loading, host.load_began = order, self._now
        self._loads.append(order)

    def _unload(self, order: UnloadOrder) -> None:
        self._residency.hosts[order.target].unloading[order.model] = order
        self._unloads.append(order)
