"""What a second of computing costs those who come after it: nothing in an idle fleet, seconds in a busy one.

A prompt that is computed where another worker has it cached is answered sooner there, and everybody behind it
later. In a queue that is busy for a share of the time, the work of one delays all others together by
share / (1 - share) times as long. The share is what requests found when they were placed: who arrives
at random sees the mean over time. It has a memory, since a burst says little about what is to come, and
while one lasts it is best met by copies of what all of them ask for.
"""

from __future__ import annotations

# Requests after which what was found has lost most of its weight.
MEMORY = 256
# Nearer to its limit, no fleet is in a steady state, and the formula says nothing.
MOST_BUSY = 0.75


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
        return busy / (1.0 - busy)
