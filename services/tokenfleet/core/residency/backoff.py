"""When a failed load is tried again: after pauses that double, up to a bound, with some jitter.

The engine's own error is kept with the pause, so that whoever asks for the model meanwhile learns at once
what is wrong and when it is worth coming back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
# Quiet time after which earlier failures are forgotten.
FORGIVEN_AFTER_S = 300.0


@dataclass(slots=True)
class Quarantine:
    """A model that failed on a worker. `reason` is a stable lower-case name."""

    reason: str
    message: str
    until: float
    failures: int


class Backoff:
    """Failures by model and worker life. `draw` gives a number in [0, 1)."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._failed: dict[tuple[str, str], Quarantine] = {}

    def failed(self, model: str, worker_id: str, reason: str, message: str, now: float) -> Quarantine:
        known = self._failed.get((model, worker_id))
        failures = known.failures + 1 if known and now < known.until + FORGIVEN_AFTER_S else 1
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), LONGEST_PAUSE_S)
        pause_s *= 0.75 + 0.5 * self._draw()
        quarantine = Quarantine(reason, message, now + pause_s, failures)
        self._failed[model, worker_id] = quarantine
        return quarantine

    def holds(self, model: str, worker_id: str, now: float) -> Quarantine | None:
        """The quarantine that still lasts."""
        quarantine = self._failed.get((model, worker_id))
        return quarantine if quarantine is not None and now < quarantine.until else None

    def lasting(self, model: str, now: float) -> list[Quarantine]:
        """All quarantines of a model that still last, the one that ends first leading."""
        found = [q for (name, _), q in self._failed.items() if name == model and now < q.until]
        return sorted(found, key=lambda quarantine: quarantine.until)

    def forget_worker(self, worker_id: str) -> None:
        """That life is over."""
        for key in [key for key in self._failed if key[1] == worker_id]:
            del self._failed[key]

    def forgive(self, model: str) -> None:
        """Somebody mended the entry: try again at once."""
        for key in [key for key in self._failed if key[0] == model]:
            del self._failed[key]
