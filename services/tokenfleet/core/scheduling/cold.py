"""What it would cost to serve a request where its model is not: the load comes first.

How long a load takes is seen in the fleet itself: whoever follows a worker sees a model begin to load and
become ready. The last one of a model says most about the next, which finds the same files on disks as fast;
of a model that was never seen to load nothing is known but how long others took.
"""

from __future__ import annotations

from typing import NamedTuple

from tokenfleet.core.scheduling.speed import Price

# Of a load before any was seen: enough that nobody is driven away from a worker that serves.
UNSEEN_LOAD_S = 30.0


class LoadTimes:
    """Seconds that a model takes to load, by the last time it did."""

    def __init__(self) -> None:
        self._last_s: dict[str, float] = {}

    def learn(self, model: str, seconds: float) -> None:
        self._last_s[model] = seconds

    def expect(self, model: str) -> float:
        known = self._last_s.get(model)
        if known is not None:
            return known
        return sum(self._last_s.values()) / len(self._last_s) if self._last_s else UNSEEN_LOAD_S


class ColdCost(NamedTuple):
    """Of a request that is the first one on a worker that loads its model now; in seconds."""

    load_s: float
    prompt_s: float
    step_s: float
    answer_s: float

    @property
    def ttft_s(self) -> float:
        return self.load_s + self.prompt_s + self.step_s

    @property
    def cost_s(self) -> float:
        return self.ttft_s + self.answer_s

    def parts_s(self) -> dict[str, float]:
        return {"load": self.load_s, "prompt": self.prompt_s, "step": self.step_s, "answer": self.answer_s}


def cold_cost(load_s: float, speed: Price, prompt_tokens: int, answer_tokens: int) -> ColdCost:
    """At the speed of a worker that serves the model already: of others nothing is known."""
    step_s = speed.step_s(1, 0, prompt_tokens)
    return ColdCost(load_s, speed.per_prefill_token_s * prompt_tokens, step_s, answer_tokens * step_s)
