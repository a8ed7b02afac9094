"""A bounded queue of requests for one model: priority classes, first come first served within each.

The bound is per model, so that one overloaded model does not shed the others' requests. A resumed stream
waits before new requests of its class and is never shed: its client has half an answer, and the number of
such streams is bounded by what was running. A full queue gives its newest place of the lowest class to an
arrival of a higher one. Workers are chosen when a request leaves, not when it enters: by then the fleet has
changed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Lane(IntEnum):
    """Places of one kind, in the order in which they are served."""

    INTERACTIVE_RESUMED = 0
    INTERACTIVE = 1
    STANDARD_RESUMED = 2
    STANDARD = 3
    BATCH_RESUMED = 4
    BATCH = 5

    @property
    def resumed(self) -> bool:
        return self in _RESUMED

    @property
    def priority_class(self) -> str:
        return self.name.removesuffix("_RESUMED").lower()


_RESUMED = frozenset({Lane.INTERACTIVE_RESUMED, Lane.STANDARD_RESUMED, Lane.BATCH_RESUMED})
_SHEDDABLE = (Lane.BATCH, Lane.STANDARD, Lane.INTERACTIVE)


class Overflow(Exception):
    """The queue is full and the arrival outranks nobody in it."""


@dataclass(slots=True, eq=False)
class Entry(Generic[Item]):
    """One who waits. `deadline` is when the wait ends in any case."""

    item: Item
    lane: Lane
    since: float
    deadline: float
    number: int
    waiting: bool = True

    def __lt__(self, other: Entry[Item]) -> bool:
        return (self.deadline, self.number) < (other.deadline, other.number)


class WaitingQueue(Generic[Item]):
    """The requests that wait for one model. Times are the caller's seconds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lanes: tuple[dict[int, Entry[Item]], ...] = tuple({} for _ in Lane)
        self._by_deadline: list[Entry[Item]] = []
        self._size = 0
        self._last_number = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Entry[Item]]:
        """Everybody, in the order of service; entries may be removed while iterating."""
        for lane in self._lanes:
            yield from tuple(lane.values())

    def depth(self, lane: Lane) -> int:
        return len(self._lanes[lane])

    def put(
        self, item: Item, lane: Lane, now: float, deadline: float
    ) -> tuple[Entry[Item], Entry[Item] | None]:
        """The new entry, and the one that lost its place to it. Raises Overflow."""
        evicted = None
        if self._size >= self._limit and not lane.resumed:
            evicted = self._newest_below(lane)
            if evicted is None:
                raise Overflow
            self.remove(evicted)
        self._last_number += 1
        entry = Entry(item, lane, now, deadline, self._last_number)
        self._lanes[lane][entry.number] = entry
        heapq.heappush(self._by_deadline, entry)
        self._size += 1
        return entry, evicted

    def remove(self, entry: Entry[Item]) -> None:
        """Takes the entry out, because it was placed, gave up or was shed."""
        del self._lanes[entry.lane][entry.number]
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
        """How many are served before this one, asked as it enters: it is the last of its lane."""
        return sum(len(self._lanes[lane]) for lane in Lane if lane <= entry.lane) - 1

    def _newest_below(self, lane: Lane) -> Entry[Item] | None:
        for lower in _SHEDDABLE:
            if lower > lane and self._lanes[lower]:
                return self._lanes[lower][next(reversed(self._lanes[lower]))]
        return None
