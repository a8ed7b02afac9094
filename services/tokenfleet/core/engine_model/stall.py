"""When an engine is wedged: it has work, and no step came for many times as long as its steps take.

The only proof of an accelerator's life is progress; a process that exists and a driver that answers are none.
"""

from __future__ import annotations


class StallDetector:
    """Asked at regular intervals. Time in which nobody asked does not count against the engine: when the
    asking event loop itself was held up, so were the steps that it would have seen."""

    def __init__(self, *, steps_missed: float, least_s: float, interval_s: float) -> None:
        """Wedged after `steps_missed` times its slowest known step, but not before `least_s`."""
        self._steps_missed = steps_missed
        self._least_s = least_s
        self._most_counted_s = 2 * interval_s
        self._steps = -1
        self._asked_at = 0.0
        self._quiet_s = 0.0

    def wedged(self, now: float, *, busy: bool, steps: int, slowest_s: float) -> bool:
        """`steps` are those made so far, `slowest_s` the longest of the latest ones, 0 if there are none."""
        elapsed = min(now - self._asked_at, self._most_counted_s)
        self._asked_at = now
        if not busy or steps != self._steps:
            self._steps = steps if busy else -1
            self._quiet_s = 0.0
            return False
        self._quiet_s += elapsed
        return self._quiet_s > max(self._least_s, self._steps_missed * slowest_s)
