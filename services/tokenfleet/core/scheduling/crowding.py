"""What a second of computing costs those who come after it: nothing in an idle fleet, seconds in a busy one.

A prompt that is computed where another worker has it cached is answered sooner there, and everybody behind
it later: all who come before the worker has run dry once more. In a queue (M/M/1) that is busy for a share s
of the time, with services of length 1, that takes (s / (1 - s) + 1) / (1 - s) on the average: the work found
and one's own, stretched by what comes meanwhile. At s arrivals a unit of time, all others together wait s /
(1 - s)² times as long as the work that is added.

The share is what requests found when they were placed: who arrives at random sees the mean over time. It has
a memory, since a burst says little about what is to come, and while one lasts it is best met by copies of
what all of them ask for.
"""

from __future__ import annotations

# Requests after which what was found has lost most of its weight.
MEMORY = 256
# Nearer to its limit, no fleet is in a steady state, and the formula says nothing.
MOST_BUSY = 0.6


class Crowding:
    """Of one model's replicas."""

    __slots__ = ("_busy",)

    def __init__(self) -> None:
        self._busy = 0.0

    def found(self, busy: float) -> None:
        """A request was placed: that share of the replicas had more to compute already than a step takes."""
        self._busy += (busy - self._busy) / MEMORY

    @property
    def delay(self) -> float:
        """Seconds that others wait for each second of computing."""
        busy = min(self._busy, MOST_BUSY)
        return busy / (1.0 - busy) ** 2
