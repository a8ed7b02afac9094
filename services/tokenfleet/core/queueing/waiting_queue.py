"""A bounded queue of requests for one model: priority classes, then fair between tenants, then by deadline.

The bound is per model, so that one overloaded model does not shed the others' requests. A resumed stream
waits before new requests of its class and is never shed: its client has half an answer, and the number of
such streams is bounded by what was running. A full queue gives a place of the lowest class to an arrival of a
higher one, and within a class a place of the tenant that waits for most to one that waits for less; who came
last gives way. Workers are chosen when a request leaves, not when it enters: by then the fleet has changed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

from tokenfleet.core.queueing.entry import Entry, Lane
from tokenfleet.core.queueing.fair_lane import FairLane

Item = TypeVar("Item")

_SHEDDABLE = (Lane.BATCH, Lane.STANDARD, Lane.INTERACTIVE)


class Overflow(Exception):
    """The queue is full and the arrival outranks nobody in it."""


class WaitingQueue(Generic[Item]):
    """The requests that wait for one model. Times are the caller's seconds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lanes: tuple[FairLane[Item], ...] = tuple(FairLane() for _ in Lane)
        self._by_deadline: list[Entry[Item]] = []
        self._size = 0
        self._last_number = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Entry[Item]]:
        """Everybody, lane by lane; entries may be removed while iterating."""
        for lane in self._lanes:
            yield from lane

    def serving(self) -> Iterator[Entry[Item]]:
        """Everybody in the order of service; whoever is served is removed before the next is asked for."""
        for lane in self._lanes:
            yield from lane.serving()

    def ahead_of(self, lane: Lane) -> Iterator[Entry[Item]]:
        """Those of this lane and the ones that are served before it, in no particular order."""
        for other in self._lanes[: lane + 1]:
            yield from other

    def depth(self, lane: Lane) -> int:
        return len(self._lanes[lane])

    def put(
        self, item: Item, lane: Lane, now: float, deadline: float, tenant: str = "", tokens: int = 1
    ) -> tuple[Entry[Item], Entry[Item] | None]:
        """The new entry, and the one that lost its place to it. Raises Overflow."""
        evicted = None
        if self._size >= self._limit and not lane.resumed:
            evicted = self._to_give_way(lane, tenant, tokens)
            if evicted is None:
                raise Overflow
            self.remove(evicted)
        self._last_number += 1
        entry = Entry(item, lane, now, deadline, self._last_number, tenant, tokens)
        self._lanes[lane].add(entry)
        heapq.heappush(self._by_deadline, entry)
        self._size += 1
        return entry, evicted

    def remove(self, entry: Entry[Item], *, served: bool = False) -> None:
        """Takes the entry out, because it was served, gave up or was shed."""
        self._lanes[entry.lane].remove(entry, served=served)
        entry.waiting = False
        self._size -= 1
        if len(self._by_deadline) > 2 * self._size + 64:
            self._by_deadline = [other for other in self._by_deadline if other.waiting]
            heapq.heapify(self._by_deadline)

    def expire(self, now: float) -> list[Entry[Item]]:
        """Removes and answers those whose deadline has come."""
        expired = []
        while self._by_deadline and self._by_deadline[0].deadline <= now:
            entry = heapq.heappop(self._by_deadline)
            if entry.waiting:
                self.remove(entry)
                expired.append(entry)
        return expired

    def position(self, entry: Entry[Item]) -> int:
        """How many may be served before this one, asked as it enters."""
        return sum(len(self._lanes[lane]) for lane in Lane if lane <= entry.lane) - 1

    def _to_give_way(self, lane: Lane, tenant: str, tokens: int) -> Entry[Item] | None:
        for lower in _SHEDDABLE:
            if lower > lane and (entry := self._lanes[lower].newest_of_the_greediest()) is not None:
                return entry
        equal = self._lanes[lane].newest_of_the_greediest()
        if equal is None or equal.tenant == tenant:
            return None
        waits_for = self._lanes[lane].tokens
        return equal if waits_for(equal.tenant) > waits_for(tenant) + tokens else None
