"""What may befall an engine, and after how many steps: failures that can be ordered are failures that can be
tested.

Steps are counted over an engine's restarts and every fault strikes once, so that an engine which died of one
can return. Only what the engine does is here; to notice it and to deal with it is its host's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    CRASH = "crash"  # the engine is gone with all its sequences
    OUT_OF_MEMORY = "out_of_memory"  # the same, for want of memory
    WEDGE = "wedge"  # it has work, and no step comes any more
    SLOW_DOWN = "slow_down"  # from now on everything takes `factor` times as long


@dataclass(frozen=True, slots=True)
class Fault:
    """Strikes in the place of step number `at_step`, the first being 1; a slow-down begins after that step.

    `factor` 1 is the usual speed.
    """

    kind: FaultKind
    at_step: int
    factor: float = 1.0


class FaultPlan:
    """Counts steps and says what struck. `struck` is a fault after which no step comes until a restart."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._coming = deque(sorted(faults, key=lambda fault: fault.at_step))
        self.steps = 0
        self.slowness = 1.0
        self.struck: FaultKind | None = None

    def next_step(self) -> bool:
        """Counts it, and answers whether it comes."""
        self.steps += 1
        while self._coming and self._coming[0].at_step <= self.steps and self.struck is None:
            fault = self._coming.popleft()
            if fault.kind is FaultKind.SLOW_DOWN:
                self.slowness = fault.factor
            else:
                self.struck = fault.kind
        return self.struck is None

    def restarted(self) -> None:
        """The engine is new; a slow accelerator is slow for the new one too."""
        self.struck = None
