"""A policy's answer: where, why, and what was expected there and elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tokenfleet.core.scheduling.cost import BEFORE_FIRST_TOKEN, PARTS, Asked, Parts, parts_of
from tokenfleet.core.scheduling.model import Replica
from tokenfleet.core.scheduling.standing import Standing


class Forecast(NamedTuple):
    """What a request would find on a replica."""

    standing: Standing
    asked: Asked
    cached: float  # tokens
    ttft_s: float
    step_s: float
    cost_s: float

    @property
    def replica(self) -> Replica:
        return self.standing.replica

    @property
    def cached_tokens(self) -> int:
        return int(self.cached)

    @property
    def parts_s(self) -> Mapping[str, float]:
        """What the cost is the sum of, by name, those that are nothing left out."""
        parts = parts_of(self.standing, self.asked, self.cached)
        return {name: seconds for name, seconds in zip(PARTS, parts, strict=True) if seconds}


def forecast_of(standing: Standing, asked: Asked, cached: float, parts: Parts, cost_s: float) -> Forecast:
    return Forecast(standing, asked, cached, sum(parts[:BEFORE_FIRST_TOKEN]), parts[3], cost_s)


class Forecasts:
    """Those of the best candidates, put into words when somebody asks: few decisions are ever looked at."""

    __slots__ = ("_asked", "_cached", "_chosen", "_costs", "_standings")

    def __init__(
        self,
        standings: Sequence[Standing],
        costs: Sequence[float],
        cached: Sequence[float],
        asked: Asked,
        chosen: int,
    ) -> None:
        """`costs`, `cached` tokens: of each; a cost is infinite where the request could not go.
        `chosen`: which of them."""
        self._standings = standings
        self._costs = costs
        self._cached = cached
        self._asked = asked
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._standings)

    def __iter__(self) -> Iterator[Forecast]:
        for standing, cost, cached in zip(self._standings, self._costs, self._cached, strict=True):
            if cost < math.inf:
                parts = parts_of(standing, self._asked, cached)
                yield forecast_of(standing, self._asked, cached, parts, cost)

    def serving(self, limit: int) -> list[tuple[Replica, int, int]]:
        """What ran and waited on each at the time; the chosen one first, then by cost."""
        rows = sorted(range(len(self)), key=lambda row: (row != self._chosen, self._costs[row]))[:limit]
        told = (self._standings[row] for row in rows)
        return [(standing.replica, standing.running, standing.waiting) for standing in told]


class Choice(NamedTuple):
    """One replica with room. What follows `why` is there where the policy predicts."""

    replica: Replica
    why: str
    forecast: Forecast | None = None
    forecasts: Forecasts | None = None
    runs: Sequence[Any] = ()  # of the prompt in the index of prefixes
    busy: float = 0.0  # share of the replicas that had more to compute already than a step takes


def why(equals: int) -> str:
    """The reason for one of so many with the same cost."""
    return "least predicted cost" if equals == 1 else "least predicted cost, drawn among equals"
