"""What a worker's memory could be made to hold, and by letting go of what.

Never let go of: what is in use, or may be, because the worker has not spoken since it contradicted; pinned
models, down to as many copies as are to be kept; what was loaded so lately that it would only be loaded
again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tokenfleet.core.residency.eviction import Candidate, Clearance, Victim, clear
from tokenfleet.core.residency.model import Host, Place, PlaceState, UnloadOrder, Use

if TYPE_CHECKING:
    from tokenfleet.core.residency.residency import Residency

# A copy that is more than one makes room for another model's further copy only when it was idle for so long.
EXTRA_IDLE_S = 60.0
# The share of its price that a model is worth where others hold it too.
SPARE_WORTH = 0.05


class Room:
    """A view of all workers at one time."""

    def __init__(self, residency: Residency, now: float) -> None:
        self._residency = residency
        self._now = now

    def free_bytes(self, host: Host) -> float:
        """What is free and not being cleared for somebody."""
        return host.free_bytes - (host.claim.bytes if host.claim is not None else 0)

    def most_bytes(self, host: Host) -> float:
        """What would be free if all went that may ever go."""
        if not host.facts.memory_budget_bytes:
            return math.inf
        kept = sum(place.held_bytes for place in host.places.values() if self._kept(host, place))
        return host.facts.memory_budget_bytes - kept

    def turn_at(self, host: Host) -> float:
        """When the load that it is at, or clears memory for, is expected to be over."""
        popularity, now = self._residency.popularity, self._now
        if host.claim is not None:
            now += popularity.load_s(host.claim.model, host.claim.bytes)
        if host.loading is None:
            return now
        return max(now, host.load_began + popularity.load_s(host.loading.model, host.loading.bytes))

    def clearance(
        self, host: Host, lacking: float, for_model: str, *, extra: bool = False
    ) -> Clearance | None:
        """What has to go now; None when what could go is not enough."""
        if lacking <= 0:
            return clear(self._residency.policy, 0, ())
        if host.claim is not None or host.sampled_at < host.doubted_at:
            return None
        candidates = [
            self._candidate(host, place)
            for place in self._losable(host, for_model)
            if self._free_to_go_at(host, place) <= self._now
        ]
        if extra:
            candidates = [one for one in candidates if one.last_used <= self._now - EXTRA_IDLE_S]
        return clear(self._residency.policy, lacking, candidates)

    def clear_at(self, host: Host, lacking: float, for_model: str) -> float:
        """When enough could go, if nobody used it until then; infinite when it is in use."""
        times = sorted(
            (self._free_to_go_at(host, place), place.held_bytes) for place in self._losable(host, for_model)
        )
        freed = 0
        for at, held_bytes in times:
            freed += held_bytes
            if freed >= lacking:
                return max(at, self._now)
        return math.inf

    def order(self, host: Host, victim: Victim, cause: str, for_model: str = "") -> UnloadOrder:
        candidate = victim.candidate
        use = host.uses.get(candidate.model)
        return UnloadOrder(
            candidate.model,
            host.target,
            host.facts.worker_id,
            candidate.epoch,
            max(0.0, self._now - candidate.last_used),
            cause,
            victim.sleep,
            for_model,
            0 if use is None else use.arrivals,
        )

    def dispensable(self) -> Iterator[UnloadOrder]:
        """What goes though nobody needs its memory: not in the catalog any more, or idle for too long."""
        for host in self._residency.hosts.values():
            if not host.usable or host.sampled_at < host.doubted_at:
                continue
            for place in tuple(host.places.values()):
                cause = self._dispensable_for(host, place)
                if cause:
                    yield self.order(host, Victim(self._candidate(host, place)), cause)

    def _dispensable_for(self, host: Host, place: Place) -> str:
        residency, limits = self._residency, self._residency.limits
        use = host.uses.get(place.model)
        if place.state is not PlaceState.READY or use is None or use.running or place.model in host.unloading:
            return ""
        if place.model in residency.retired:
            return "removed"
        if self._kept(host, place) or residency.demands.wanted(place.model) or use.held_to > self._now:
            return ""
        idle_s = self._now - use.last_used
        if idle_s >= limits.surplus_idle_s and self._copies(place.model) > 1:
            return "surplus"
        return "idle" if limits.idle_s and idle_s >= limits.idle_s else ""

    def _losable(self, host: Host, for_model: str) -> list[Place]:
        return [
            place
            for place in host.places.values()
            if place.state in (PlaceState.READY, PlaceState.ASLEEP)
            and place.model != for_model
            and place.model not in host.unloading
            and not self._kept(host, place)
            and not self._residency.demands.wanted(place.model)
        ]

    def _free_to_go_at(self, host: Host, place: Place) -> float:
        if place.state is PlaceState.ASLEEP:
            return self._now
        use = host.uses.get(place.model)
        if use is None or use.running:
            return math.inf
        return max(self._now, use.held_to)

    def _candidate(self, host: Host, place: Place) -> Candidate:
        popularity, now = self._residency.popularity, self._now
        use = host.uses.get(place.model) or Use(place.epoch, 0.0, 0.0)
        load_s = popularity.load_s(place.model, place.memory_bytes)
        spare = self._copies(place.model) > 1
        asleep_bytes = -1
        if place.sleep is not None and place.state is PlaceState.READY and place.sleep.wake_s < load_s:
            asleep_bytes = place.sleep.asleep_bytes
        price = popularity.price(place.model, load_s, now) * (SPARE_WORTH if spare else 1.0)
        return Candidate(
            place.model, place.epoch, place.held_bytes, use.last_used, price, asleep_bytes, spare
        )

    def _kept(self, host: Host, place: Place) -> bool:
        """Whether it is pinned there: of more copies than are to be kept, the longest idle may go."""
        entry = self._residency.entries.get(place.model)
        keeps = self._residency.keeps(entry) if entry is not None else 0
        if not keeps or place.state in (PlaceState.FAILED, PlaceState.UNLOADING):
            return False
        if keeps < 0:
            return True
        ready = [one for one in self._residency.hosts.values() if one.serves(place.model)]
        if len(ready) <= keeps or host not in ready:
            return place.state is not PlaceState.ASLEEP
        ready.sort(key=lambda one: (one.uses[place.model].last_used, one.target))
        return host in ready[len(ready) - keeps :]

    def _copies(self, model: str) -> int:
        return sum(host.serves(model) for host in self._residency.hosts.values())
