"""Who waits for a model: equal demands are one, however many ask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Demand:
    """A model wanted on so many workers, not counting some."""

    model: str
    replicas: int
    excluded: frozenset[str]
    since: float


@dataclass(slots=True, frozen=True)
class Settlement:
    """How a demand ended: `reason` is empty when it is met, by `worker_id`."""

    demand: Demand
    worker_id: str = ""
    reason: str = ""
    message: str = ""
    retry_after_s: float = 0.0


class Demands:
    """Those that are not settled, by what they want."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int, frozenset[str]], Demand] = {}

    def join(self, model: str, replicas: int, excluded: frozenset[str], now: float) -> Demand:
        """The demand for just that, a new one if nobody else has it."""
        key = (model, max(1, replicas), excluded)
        demand = self._open.get(key)
        if demand is None:
            demand = self._open[key] = Demand(*key, since=now)
        return demand

    def open(self) -> list[Demand]:
        return list(self._open.values())

    def settled(self, demand: Demand) -> None:
        self._open.pop((demand.model, demand.replicas, demand.excluded), None)
