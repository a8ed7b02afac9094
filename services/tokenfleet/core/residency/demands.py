"""Who waits for a model: equal demands are one, however many ask."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Demand:
    """A model wanted on so many workers, not counting some."""

    model: str
    replicas: int
    excluded: frozenset[str]
    since: float
    deadline: float = math.inf  # of the most patient who asked
    waits_for: str = ""  # what it waits for, where that is not a load
    ready_at: float = math.inf  # when that is expected at the latest; infinite: not known


@dataclass(slots=True, frozen=True)
class Settlement:
    """How a demand ended: `reason` is empty when it is met, by `worker_id`."""

    demand: Demand
    worker_id: str = ""
    reason: str = ""
    message: str = ""
    retry_after_s: float = 0.0
    missing_bytes: int = 0  # of memory, where it ended for want of that


class Demands:
    """Those that are not settled, by what they want."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int, frozenset[str]], Demand] = {}

    def join(
        self, model: str, replicas: int, excluded: frozenset[str], now: float, deadline: float = math.inf
    ) -> Demand:
        """The demand for just that, a new one if nobody else has it."""
        key = (model, max(1, replicas), excluded)
        demand = self._open.get(key)
        if demand is None:
            demand = self._open[key] = Demand(*key, since=now, deadline=deadline)
        demand.deadline = max(demand.deadline, deadline)
        return demand

    def open(self) -> list[Demand]:
        """The oldest first."""
        return list(self._open.values())

    def wanted(self, model: str) -> bool:
        return any(demand.model == model for demand in self._open.values())

    def settled(self, demand: Demand) -> None:
        self._open.pop((demand.model, demand.replicas, demand.excluded), None)
