"""Which models a worker lets go of to make room, and what that costs.

Two policies. `lru` lets go of what was used the longest ago. `demand` lets go of what is cheapest to lose: by
the time that requests are expected to wait because it is gone. Both may only take from what they are offered:
idle, unpinned, past its minimum residency.

An engine that can sleep is put to sleep rather than unloaded where that frees enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(slots=True, frozen=True)
class Candidate:
    """A model that could go. `price` is in seconds of waiting, `spare`: others hold it too."""

    model: str
    epoch: int
    frees_bytes: int
    last_used: float
    price: float = 0.0
    asleep_bytes: int = -1  # what it keeps when it sleeps; negative: it can't, or that gains nothing
    spare: bool = False


class Victim(NamedTuple):
    """A model that is to go."""

    candidate: Candidate
    sleep: bool = False

    @property
    def frees_bytes(self) -> int:
        return self.candidate.frees_bytes - (self.candidate.asleep_bytes if self.sleep else 0)


class Clearance(NamedTuple):
    """What has to go, and a cost that is comparable between workers: the lower, the better."""

    victims: tuple[Victim, ...]
    cost: float


class EvictionPolicy(Protocol):
    """How victims are chosen on one worker."""

    name: str

    def orders(self, candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
        """All of them, the first to go first; where there are several orders, the cheapest outcome counts."""

    def cost(self, victims: Sequence[Victim]) -> float:
        """What it costs to lose them; it is compared between workers."""


class LeastRecentlyUsed:
    """What was used the longest ago goes first; between workers, the one whose latest victim is oldest."""

    name = "lru"

    def orders(self, candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
        yield sorted(candidates, key=lambda one: (one.last_used, one.model))

    def cost(self, victims: Sequence[Victim]) -> float:
        return max((victim.candidate.last_used for victim in victims), default=-math.inf)


class CheapestToLose:
    """What costs the least waiting goes first, or the least for each byte, or a large one alone."""

    name = "demand"

    def orders(self, candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
        by_price = sorted(candidates, key=lambda one: (one.price, one.last_used, one.model))
        yield by_price
        yield sorted(by_price, key=lambda one: one.price / max(1, one.frees_bytes))
        for alone in by_price:
            yield [alone]

    def cost(self, victims: Sequence[Victim]) -> float:
        return sum(victim.candidate.price for victim in victims)


POLICIES: dict[str, type[EvictionPolicy]] = {"lru": LeastRecentlyUsed, "demand": CheapestToLose}


def clear(policy: EvictionPolicy, needed_bytes: float, candidates: Sequence[Candidate]) -> Clearance | None:
    """What has to go so that so much gets free; None when all of it together is not enough."""
    ways = (_clear(policy, needed_bytes, order) for order in policy.orders(candidates))
    return min((way for way in ways if way is not None), key=lambda way: way.cost, default=None)


def _clear(policy: EvictionPolicy, needed_bytes: float, order: Sequence[Candidate]) -> Clearance | None:
    chosen: list[Candidate] = []
    freed = 0
    for candidate in order:
        if freed >= needed_bytes:
            break
        chosen.append(candidate)
        freed += candidate.frees_bytes
    if freed < needed_bytes:
        return None
    # The last ones chosen may be large enough to spare some of the first, of which the dearest stays.
    for candidate in reversed(chosen[:-1]):
        if freed - candidate.frees_bytes >= needed_bytes:
            chosen.remove(candidate)
            freed -= candidate.frees_bytes
    victims = []
    for candidate in reversed(chosen):  # the dearest sleeps rather than the cheapest
        sleep = candidate.asleep_bytes >= 0 and freed - candidate.asleep_bytes >= needed_bytes
        freed -= candidate.asleep_bytes if sleep else 0
        victims.append(Victim(candidate, sleep))
    victims.reverse()
    return Clearance(tuple(victims), policy.cost(victims))
