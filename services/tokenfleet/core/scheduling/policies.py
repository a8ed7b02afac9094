"""Ways to choose among workers that have room. All of them see what was just sent (`Replica.load`).

A policy answers the replica and, for people, why. `draw` gives a number in [0, 1) from the caller's seeded
source, so that a decision can be replayed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

from tokenfleet.core.scheduling.choice import Choice
from tokenfleet.core.scheduling.model import Replica
from tokenfleet.core.scheduling.request import Request

# Of an answer whose length nobody knows.
UNKNOWN_TOKENS = 128

Draw = Callable[[], float]


class Hooks:
    """What a policy may want to hear of. One that does not learn does not listen."""

    def expected_tokens(self, request: Request) -> int:
        """What a request takes, prompt and answer, as far as that is known."""
        return request.prompt_tokens + min(request.max_tokens or UNKNOWN_TOKENS, UNKNOWN_TOKENS) or 1

    def placed(self, request: Request, choice: Choice) -> None:
        """The request goes there; nothing counts it yet."""

    def answered(self, request: Request, tokens: int) -> None:
        """Its answer ended with so many tokens."""

    def appeared(self, replica: Replica) -> None:
        """It may be sent requests from now on."""

    def vanished(self, replica: Replica) -> None:
        """It may not, for the time being."""

    def emptied(self, replica: Replica) -> None:
        """It holds nothing that it held: its engine was started afresh, or it is gone for good."""

    def cache_changed(self, replica: Replica, stored: Sequence[int], removed: Sequence[int]) -> None:
        """Blocks of prompts came into its cache, or went."""


class Policy(Hooks, ABC):
    """Chooses among the replicas that may be sent requests."""

    name: ClassVar[str]

    def name_for(self, model: str) -> str:
        """The policy that decides about the model."""
        return self.name

    @abstractmethod
    def choose(self, request: Request, placeable: Collection[Replica], draw: Draw) -> Choice | None:
        """A replica with room for the request; None when there is none."""


class Comparing(Policy):
    """Looks at one candidate after the other."""

    def choose(self, request: Request, placeable: Collection[Replica], draw: Draw) -> Choice | None:
        roomy = [
            replica
            for replica in placeable
            if replica.running + replica.waiting + replica.reserved < replica.capacity
        ]
        if request.choosy:
            roomy = [replica for replica in roomy if request.suits(replica)]
        if request.preferred is not None:
            roomy = [replica for replica in roomy if replica.fingerprint == request.preferred] or roomy
        return Choice(*self.pick(request, roomy, draw)) if roomy else None

    @abstractmethod
    def pick(self, request: Request, candidates: Sequence[Replica], draw: Draw) -> tuple[Replica, str]:
        """One of at least one candidate with room, and why."""


class LeastLoaded(Comparing):
    """The lowest share of its sequences in use; among equals the client's zone, then the luck of the draw."""

    name = "least_loaded"

    def pick(self, request: Request, candidates: Sequence[Replica], draw: Draw) -> tuple[Replica, str]:
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


class PowerOfTwo(Comparing):
    """The less loaded of two drawn at random: nearly as even as the least loaded, at constant cost."""

    name = "power_of_two"

    def pick(self, request: Request, candidates: Sequence[Replica], draw: Draw) -> tuple[Replica, str]:
        del request
        first, second = _any_of(candidates, draw), _any_of(candidates, draw)
        return min(first, second, key=_used_share), "less loaded of two drawn"


class RoundRobin(Comparing):
    """Each in turn, whatever its load, as long as it has room."""

    name = "round_robin"

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}

    def pick(self, request: Request, candidates: Sequence[Replica], draw: Draw) -> tuple[Replica, str]:
        del draw
        turn = self._turns[request.model] = self._turns.get(request.model, -1) + 1
        return candidates[turn % len(candidates)], "its turn"


class Random(Comparing):
    """Any of them."""

    name = "random"

    def pick(self, request: Request, candidates: Sequence[Replica], draw: Draw) -> tuple[Replica, str]:
        del request
        return _any_of(candidates, draw), "drawn"


def _used_share(replica: Replica) -> float:
    return (replica.running + replica.waiting + replica.reserved) / (replica.max_sequences or 1)


def _any_of(candidates: Sequence[Replica], draw: Draw) -> Replica:
    return candidates[int(draw() * len(candidates))]
