"""The last steps of an engine, for whoever learns its speed from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

# Steps kept for a reader that is behind; more would only repeat what these already say.
KEPT = 128


class Step(NamedTuple):
    duration_s: float
    batch: int
    prefill_tokens: int
    context_tokens: int


class StepLog:
    """A bounded log that several readers follow, each with its own cursor."""

    def __init__(self) -> None:
        self._steps: deque[Step] = deque(maxlen=KEPT)
        self.observe: Callable[[float], None] = lambda seconds: None
        self.recorded = 0

    def record(self, step: Step) -> None:
        self._steps.append(step)
        self.recorded += 1
        self.observe(step.duration_s)

    def since(self, cursor: int) -> list[Step]:
        """The steps recorded after the first `cursor`, as far as they are kept."""
        new = min(self.recorded - cursor, len(self._steps))
        return list(self._steps)[len(self._steps) - new :] if new else []
