"""Which models are being loaded because somebody waits for them: one load per wish, however many wait.

A wish whose load failed for now (no worker up, the loader away) is repeated with growing pauses while
somebody still waits, and counts as hopeless when that went on for too long. One whose load succeeded is not
repeated at once, because the worker's own word, which alone makes it placeable, is still on its way. One that
nobody waits for any longer is abandoned.

A further copy of a hot model is wished for less often: whether it can be had at no loss to others is the
loader's to judge, and does not change from second to second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenfleet.core.scheduling.request import LoadWish

SETTLING_S = 1.0
COPY_SETTLING_S = 10.0
# A running wish that was not repeated for so long has nobody who waits for it.
ABANDONED_S = 1.0
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 2.0


@dataclass(slots=True)
class _State:
    since: float
    wanted_at: float = 0.0
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
            self._states[wish] = _State(since=now, wanted_at=now)
            return True
        state.wanted_at = now
        if state.running or now < state.again_at:
            return False
        state.running = True
        return True

    def running(self, wish: LoadWish) -> bool:
        state = self._states.get(wish)
        return state is not None and state.running

    def hope_until(self, wish: LoadWish) -> float:
        """Until when waiting for it makes sense; while a load runs, deadlines alone bound the wait."""
        state = self._states.get(wish)
        if state is None:
            return 0.0
        return math.inf if state.running else state.since + self._patience_s

    def succeeded(self, wish: LoadWish, now: float) -> None:
        settling_s = COPY_SETTLING_S if wish.replicas > 1 else SETTLING_S
        self._states[wish] = _State(since=now, running=False, again_at=now + settling_s)

    def failed_for_now(self, wish: LoadWish, now: float) -> None:
        state = self._states.setdefault(wish, _State(since=now))
        state.running = False
        state.again_at = now + (COPY_SETTLING_S if wish.replicas > 1 else state.pause_s)
        state.pause_s = min(state.pause_s * 2, LONGEST_PAUSE_S)

    def failed(self, wish: LoadWish) -> None:
        """For good: the next who asks starts afresh."""
        self._states.pop(wish, None)

    def abandoned(self, now: float) -> list[LoadWish]:
        """Running ones that nobody waits for any longer; they are forgotten."""
        gone = [
            wish
            for wish, state in self._states.items()
            if state.running and now > state.wanted_at + ABANDONED_S
        ]
        for wish in gone:
            del self._states[wish]
        return gone

    def forget_idle(self, now: float) -> None:
        """Drops what nobody has repeated for a while."""
        for wish, state in tuple(self._states.items()):
            if not state.running and now > state.again_at + self._patience_s:
                del self._states[wish]
