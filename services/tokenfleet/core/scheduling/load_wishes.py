"""Which models are being loaded because somebody waits for them: one load per wish, however many wait.

A wish whose load failed for now (no worker up, the loader away) is repeated with growing pauses while
somebody still waits, and counts as hopeless when that went on for too long. One whose load succeeded is not
repeated at once, because the worker's own word, which alone makes it placeable, is still on its way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenfleet.core.scheduling.request import LoadWish

SETTLING_S = 1.0
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 2.0


@dataclass(slots=True)
class _State:
    since: float
    running: bool = True
    pause_s: float = FIRST_PAUSE_S
    again_at: float = math.inf


class LoadWishes:
    """The state of every wish that is running or was lately."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._states: dict[LoadWish, _State] = {}

    def __len__(self) -> int:
        return len(self._states)

    def wanted(self, wish: LoadWish, now: float) -> bool:
        """Somebody waits for it; whether the caller shall start a load now."""
        state = self._states.get(wish)
        if state is None:
            self._states[wish] = _State(since=now)
            return True
        if state.running or now < state.again_at:
            return False
        state.running = True
        return True

    def hope_until(self, wish: LoadWish) -> float:
        """Until when waiting for it makes sense; while a load runs, deadlines alone bound the wait."""
        state = self._states.get(wish)
        if state is None:
            return 0.0
        return math.inf if state.running else state.since + self._patience_s

    def succeeded(self, wish: LoadWish, now: float) -> None:
        self._states[wish] = _State(since=now, running=False, again_at=now + SETTLING_S)

    def failed_for_now(self, wish: LoadWish, now: float) -> None:
        state = self._states.setdefault(wish, _State(since=now))
        state.running = False
        state.again_at = now + state.pause_s
        state.pause_s = min(state.pause_s * 2, LONGEST_PAUSE_S)

    def failed(self, wish: LoadWish) -> None:
        """For good: the next who asks starts afresh."""
        self._states.pop(wish, None)

    def forget_idle(self, now: float) -> None:
        """Drops what nobody has repeated for a while."""
        for wish, state in tuple(self._states.items()):
            if not state.running and now > state.again_at + self._patience_s:
                del self._states[wish]
