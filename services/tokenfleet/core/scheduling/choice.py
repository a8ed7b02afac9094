"""A policy's answer: where, why, and what was expected there and elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenfleet.core.scheduling.model import Replica

UNKNOWN_ZONE = 0

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Forecast(NamedTuple):
    """What a request would find on a replica. `cost_s` is infinite where it cannot go."""

    replica: Replica
    ttft_s: float
    step_s: float
    cost_s: float
    cached_tokens: int
    parts_s: Mapping[str, float]  # of which the cost is the sum


class Forecasts:
    """Those of the best candidates, put into words when somebody asks: few decisions are ever looked at."""

    __slots__ = (
        "_answer",
        "_cached",
        "_cells",
        "_costs",
        "_delay",
        "_prompt",
        "_zone",
        "_zone_penalty_s",
        "replicas",
    )

    def __init__(
        self,
        replicas: Sequence[Replica],
        cells: NDArray[np.float64],
        costs: Sequence[float],
        cached: NDArray[np.float64] | None,
        prompt: int,
        answer: float,
        *,
        zone: int,
        zone_penalty_s: float,
        delay: float,
    ) -> None:
        """`cells`: of the board, a column a replica, the chosen one first. `prompt`, `answer`: tokens.
        `delay`: of others, for each second of computing."""
        self.replicas = replicas
        self._cells = cells
        self._costs = costs
        self._cached = cached
        self._prompt = prompt
        self._answer = answer
        self._zone = zone
        self._zone_penalty_s = zone_penalty_s
        self._delay = delay

    def __iter__(self) -> Iterator[Forecast]:
        return map(self._forecast, range(len(self.replicas)))

    def chosen(self) -> Forecast:
        return self._forecast(0)

    def _forecast(self, number: int) -> Forecast:
        _, prompt_s, _, _, step_s, prefill_s, free, _, zone, queue_s, ahead, _, late_s, strain_s = (
            self._cells[:, number].tolist()
        )
        prompt, answer = self._prompt, self._answer
        cached = 0.0 if self._cached is None else float(self._cached[number])
        step = step_s + (prompt_s - prefill_s) * prompt
        lost = prompt + answer - free
        abroad = self._zone not in (UNKNOWN_ZONE, zone)
        ttft = {
            "queue": queue_s,
            "place": ahead * answer * step,
            "prompt": prefill_s * (prompt - cached),
            "step": step,
            "late": late_s,
            "strain": strain_s,
        }
        parts = ttft | {
            "answer": answer * step,
            "recompute": prefill_s * max(0.0, lost - cached) if lost > 0.0 else 0.0,
            "zone": self._zone_penalty_s * abroad,
            "others": self._delay * ttft["prompt"],
        }
        told = {name: seconds for name, seconds in parts.items() if seconds}
        return Forecast(
            self.replicas[number], sum(ttft.values()), step, self._costs[number], int(cached), told
        )


@dataclass(slots=True, eq=False)
class Choice:
    """One replica with room. What follows `why` is there where the policy predicts."""

    replica: Replica
    why: str
    forecast: Forecast | None = None
    forecasts: Forecasts | None = None
    runs: Sequence[Any] = ()  # of the prompt in the index of prefixes
