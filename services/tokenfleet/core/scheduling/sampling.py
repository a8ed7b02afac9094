"""How often a worker's load is looked at: what a scheduler knows is as old as this, and costs as much."""

from __future__ import annotations

LEAST_INTERVAL_MS = 50
# What a router may spend on following a fleet, in cores, and what it takes, as measured on a busy machine and
# rounded up: for each worker, whatever it says, and for each sample. Where samples come over gRPC instead of
# as frames, it is twice as much.
BUDGET = 0.12
PER_WORKER = 20e-6
PER_SAMPLE_S = 200e-6
LARGEST = 1000  # fleet that the budget is for; a larger one costs more
# A worker that has nothing new to tell proves that it lives, unless it was asked for less.
LONGEST_SILENCE_S = 1.0
# Of the steps in one sample, the last ones: to learn from all of them would be most of a router's work.
STEPS_LEARNED = 4


def sample_interval_ms(workers: int) -> int:
    """The least time between two samples of one worker in a fleet of that size."""
    per_second = (BUDGET - PER_WORKER * min(workers, LARGEST)) / PER_SAMPLE_S
    return max(LEAST_INTERVAL_MS, round(1000 * workers / per_second))
