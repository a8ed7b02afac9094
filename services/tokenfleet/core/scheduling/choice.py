"""A policy's answer: where, why, and what was expected there and elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenfleet.core.scheduling.model import Replica

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


class Forecasts:
    """Those of the best candidates, put into words when somebody asks: few decisions are ever looked at."""

    __slots__ = ("_answer", "_cached", "_cells", "_costs", "_prompt", "replicas")

    def __init__(
        self,
        replicas: Sequence[Replica],
        cells: NDArray[np.float64],
        costs: Sequence[float],
        cached: NDArray[np.float64] | None,
        prompt: int,
        answer: float,
    ) -> None:
        """`cells`: of the board, a column a replica, the chosen one first. `prompt`, `answer`: tokens."""
        self.replicas = replicas
        self._cells = cells
        self._costs = costs
        self._cached = cached
        self._prompt = prompt
        self._answer = answer

    def __iter__(self) -> Iterator[Forecast]:
        return map(self._forecast, range(len(self.replicas)))

    def chosen(self) -> Forecast:
        return self._forecast(0)

    def _forecast(self, number: int) -> Forecast:
        fixed, prompt_s, answer_s, pair_s, step_s, prefill_s, *_ = self._cells[:, number].tolist()
        prompt, answer = self._prompt, self._answer
        cached = 0.0 if self._cached is None else float(self._cached[number])
        step = step_s + (prompt_s - prefill_s) * prompt
        linear = fixed + prompt_s * prompt + answer_s * answer + pair_s * prompt * answer
        ttft = linear - step * answer - prefill_s * cached
        return Forecast(self.replicas[number], ttft, step, self._costs[number], int(cached))


@dataclass(slots=True, eq=False)
class Choice:
    """One replica with room. What follows `why` is there where the policy predicts."""

    replica: Replica
    why: str
    forecast: Forecast | None = None
    forecasts: Forecasts | None = None
    runs: Sequence[Any] = ()  # of the prompt in the index of prefixes
