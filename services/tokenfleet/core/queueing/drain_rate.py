"""How fast a queue empties, measured at the queue, so that Retry-After is a promise and not a guess.

Only the time in which somebody waits counts: a queue that is mostly empty says nothing about how fast it
could be emptied. The mean goes over departures, not over time, since the next departures are what a client
waits for.
"""

from __future__ import annotations

# Departures after which an old measurement has lost most of its weight.
MEMORY = 32


class DrainRate:
    """A moving mean of the seconds between departures while the queue is not empty."""

    def __init__(self) -> None:
        self._mean_s = 0.0
        self._departures = 0
        self._busy_since: float | None = None

    def occupied(self, now: float) -> None:
        """Somebody waits; called for each arrival."""
        if self._busy_since is None:
            self._busy_since = now

    def departed(self, now: float, still_waiting: bool) -> None:
        """One left towards a worker."""
        gap = now - (now if self._busy_since is None else self._busy_since)
        self._departures += 1
        self._mean_s += (gap - self._mean_s) / min(self._departures, MEMORY)
        self._busy_since = now if still_waiting else None

    def emptied(self) -> None:
        """The last one gave up, so nobody waits though nobody departed."""
        self._busy_since = None

    def seconds_to_drain(self, waiting: int, now: float) -> float:
        """When the last of `waiting` will have left; 0 when nothing was measured yet.

        A queue that has not moved for longer than its mean says is as slow as it looks now.
        """
        stalled_s = 0.0 if self._busy_since is None else now - self._busy_since
        return waiting * max(self._mean_s, stalled_s / MEMORY) if self._departures else stalled_s
