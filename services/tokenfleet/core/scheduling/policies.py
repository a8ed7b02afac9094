"""Ways to choose among workers that have room. All of them see what was just sent (`Replica.load`).

A policy answers the replica and, for people, why. `draw` gives a number in [0, 1) from the caller's seeded
source, so that a decision can be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from tokenfleet.core.scheduling.model import Replica
from tokenfleet.core.scheduling.request import Request

Draw = Callable[[], float]


class Policy(Protocol):
    """Chooses one of at least one candidate."""

    name: str

    def choose(self, request: Request, candidates: Sequence[Replica], draw: Draw) -> tuple[Replica, str]: ...


class LeastLoaded:
    """The lowest share of its sequences in use; among equals the client's zone, then the luck of the draw."""

    name = "least_loaded"

    def choose(self, request: Request, candidates: Sequence[Replica], draw: Draw) -> tuple[Replica, str]:
        least = math.inf
        equals: list[Replica] = []
        for replica in candidates:
            share = _used_share(replica)
            if share < least:
                least, equals = share, [replica]
            elif share == least:
                equals.append(replica)
        if len(equals) == 1:
            return equals[0], "least loaded"
        near = [replica for replica in equals if replica.worker.zone == request.zone]
        if len(near) == 1:
            return near[0], "least loaded, in the client's zone"
        drawn = _any_of(near or equals, draw)
        return (
            drawn,
            "least loaded, in the client's zone, drawn" if near else "least loaded, drawn among equals",
        )


class PowerOfTwo:
    """The less loaded of two drawn at random: nearly as even as the least loaded, at constant cost."""

    name = "power_of_two"

    def choose(self, request: Request, candidates: Sequence[Replica], draw: Draw) -> tuple[Replica, str]:
        del request
        first, second = _any_of(candidates, draw), _any_of(candidates, draw)
        return min(first, second, key=_used_share), "less loaded of two drawn"


class RoundRobin:
    """Each in turn, whatever its load, as long as it has room."""

    name = "round_robin"

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}

    def choose(self, request: Request, candidates: Sequence[Replica], draw: Draw) -> tuple[Replica, str]:
        del draw
        turn = self._turns[request.model] = self._turns.get(request.model, -1) + 1
        return candidates[turn % len(candidates)], "its turn"


class Random:
    """Any of them."""

    name = "random"

    def choose(self, request: Request, candidates: Sequence[Replica], draw: Draw) -> tuple[Replica, str]:
        del request
        return _any_of(candidates, draw), "drawn"


POLICIES: dict[str, Callable[[], Policy]] = {
    policy.name: policy for policy in (LeastLoaded, PowerOfTwo, Random, RoundRobin)
}


def make_policy(name: str) -> Policy:
    """The policy of that name; raises KeyError."""
    return POLICIES[name]()


def _used_share(replica: Replica) -> float:
    return (replica.running + replica.waiting + replica.reserved) / (replica.max_sequences or 1)


def _any_of(candidates: Sequence[Replica], draw: Draw) -> Replica:
    return candidates[int(draw() * len(candidates))]
