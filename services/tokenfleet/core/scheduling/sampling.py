"""How often a worker's load is looked at: what a scheduler knows is as old as this, and costs as much."""

from __future__ import annotations

import math

LEAST_INTERVAL_MS = 50
# Receiving a sample on a connection of its own costs some 105 µs on a quiet machine, taking it in some 40:
# with this, a thousand workers cost some 15 % of a core there.
INTERVAL_MS_PER_WORKER = 1.0
# A worker that has nothing new to tell proves that it lives.
LONGEST_SILENCE_S = 1.0
# Of the steps in one sample, the last ones: to learn from all of them would be most of a router's work.
STEPS_LEARNED = 4


def sample_interval_ms(workers: int) -> int:
    """The least time between two samples of one worker in a fleet of that size."""
    return max(LEAST_INTERVAL_MS, math.ceil(workers * INTERVAL_MS_PER_WORKER))
