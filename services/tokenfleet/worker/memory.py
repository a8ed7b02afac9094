"""The worker's memory: what models may take of it, and whether it came back when they went.

What counts is what the worker's processes occupy, itself and its engines' included, as the kernel says. An
engine that is told to unload and keeps its memory makes the worker smaller, whatever the engine believes; so
what did not come back is taken off the budget, and said, until it is found to be free after all.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2

# What may stay behind without meaning anything: the allocator's reserve, interpreters' caches.
SLACK_BYTES = 64 << 20
SLACK_RATIO = 0.05

log = get_logger(__name__)


def occupied_bytes() -> int:
    """What this process and all below it occupy."""
    own = psutil.Process()
    total = int(own.memory_info().rss)
    for child in own.children(recursive=True):
        try:
            total += int(child.memory_info().rss)
        except psutil.Error:
            continue  # it ended meanwhile
    return total


class Memory:
    """The budget, less what went missing."""

    def __init__(self, budget_bytes: int, occupied: Callable[[], int] = occupied_bytes) -> None:
        self.missing_bytes = 0
        self._budget_bytes = budget_bytes
        self._occupied = occupied
        self._empty_bytes: int | None = None  # occupied before the first model came

    @property
    def budget_bytes(self) -> int:
        return max(0, self._budget_bytes - self.missing_bytes)

    def check(self, model: str, needed: int, held: int) -> None:
        """Raises FleetError OUT_OF_MEMORY when so much more than what is held goes beyond the budget."""
        if held + needed <= self.budget_bytes:
            return
        lost = ""
        if self.missing_bytes:
            lost = f"; {self.missing_bytes} more did not come back from models that were unloaded: restart it"
        raise FleetError(
            common_pb2.REASON_OUT_OF_MEMORY,
            f"model {model} needs {needed} bytes for weights and KV, but of this worker's "
            f"{self.budget_bytes} bytes {held} are taken: unload a model first{lost}",
            missing_bytes=held + needed - self.budget_bytes,
        )

    def now(self) -> int:
        """What is occupied; to be called before a load or an unload, and given back after it."""
        occupied = self._occupied()
        if self._empty_bytes is None:
            self._empty_bytes = occupied
        return occupied

    def grown(self, before: int) -> int:
        """By how much, with a model that was loaded since."""
        return max(0, self._occupied() - before)

    def freed(self, model: str, before: int, expected: int, *, empty: bool) -> tuple[int, int]:
        """How much came back since, and how much of what was expected did not.

        With no model left, what all of them together left behind is known.
        """
        occupied = self._occupied()
        freed = max(0, before - occupied)
        missing = _beyond_slack(expected - freed, expected)
        if empty and self._empty_bytes is not None:
            left = occupied - self._empty_bytes
            missing = min(missing, max(0, left))
            self.missing_bytes = _beyond_slack(left, expected)
        else:
            self.missing_bytes += missing
        if missing:
            log.error(
                "memory did not come back: this worker can hold less until it is restarted",
                model=model,
                missing_bytes=missing,
                budget_bytes=self.budget_bytes,
            )
        return freed, missing


def _beyond_slack(missing: int, expected: int) -> int:
    return missing if missing > max(SLACK_BYTES, SLACK_RATIO * expected) else 0
