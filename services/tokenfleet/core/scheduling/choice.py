"""A policy's answer: where, why, and what was expected there and elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenfleet.core.scheduling.model import Replica


class Forecast(NamedTuple):
    """What a request would find on a replica. `cost_s` is infinite where it cannot go."""

    replica: Replica
    ttft_s: float
    step_s: float
    cost_s: float
    cached_tokens: int


class Forecasts:
    """Those of the best candidates, put into words when somebody asks: few decisions are ever looked at."""

    __slots__ = ("_cells", "replicas")

    def __init__(self, replicas: Sequence[Replica], cells: Any) -> None:
        self.replicas = replicas
        self._cells = cells  # by replica: seconds to the first token, of a step, in all; and cached tokens

    def __iter__(self) -> Iterator[Forecast]:
        for replica, (ttft, step, cost, cached) in zip(self.replicas, self._cells.T.tolist(), strict=True):
            yield Forecast(replica, ttft, step, cost, int(cached))


@dataclass(slots=True, eq=False)
class Choice:
    """One replica with room. What follows `why` is there where the policy predicts."""

    replica: Replica
    why: str
    forecast: Forecast | None = None
    forecasts: Forecasts | None = None
    runs: Sequence[Any] = ()  # of the prompt in the index of prefixes
