"""The fixed profile: the first token a set time after its submit, then all sequences on one common tick.

One tick carries a token of every sequence, as a step of a real engine does, so what is measured around it is
what a real engine would cause, at a speed that nothing on the machine can change.
"""

from __future__ import annotations

import math
from collections import deque

from tokenfleet.core.engine_model.faults import FaultPlan
from tokenfleet.core.engine_model.model import Advance, EngineModel, StepRecord
from tokenfleet.core.engine_model.prefix_cache import PrefixCache
from tokenfleet.core.engine_model.sequence import ModelSequence
from tokenfleet.core.engine_model.timing import FixedTiming


class FixedModel(EngineModel):
    def __init__(
        self, timing: FixedTiming, max_sequences: int, cache: PrefixCache, faults: FaultPlan | None = None
    ) -> None:
        super().__init__(max_sequences, cache, faults)
        self._timing = timing
        self._firsts: deque[tuple[float, ModelSequence]] = deque()
        self._origin: float | None = None
        self._next_tick = math.inf

    @property
    def _ttft_s(self) -> float:
        return self._timing.ttft_s * self._faults.slowness

    @property
    def _itl_s(self) -> float:
        return self._timing.itl_s * self._faults.slowness

    def _due_at(self) -> float | None:
        first = self._firsts[0][0] if self._firsts else math.inf
        due = min(first, self._next_tick)
        return None if due == math.inf else due

    def advance(self, now: float) -> Advance:
        out = Advance()
        while (due := self.next_event_at()) is not None and due <= now and self._faults.next_step():
            if self._next_tick <= due:
                self._tick(due, out)
            else:
                self._first_token(due, out)
            if out.ended:
                self._admit(due)
        return out

    def _admitted(self, now: float, sequence: ModelSequence) -> None:
        if self._origin is None:
            self._origin = now
        self._firsts.append((now + self._ttft_s, sequence))

    def _first_token(self, now: float, out: Advance) -> None:
        sequence = self._firsts.popleft()[1]
        if self._prefilling.get(sequence.key) is not sequence:
            return  # aborted
        prefilled = sequence.to_prefill
        self._start_decoding(now, sequence)
        self._draw((sequence,), out)
        out.steps.append(StepRecord(self._ttft_s, 1, prefilled, sequence.context_tokens))
        if self._decoding and self._next_tick == math.inf:
            self._next_tick = self._tick_after(now)

    def _tick(self, now: float, out: Advance) -> None:
        context = self._context
        batch = self._draw(self._decoding.values(), out)
        if batch:
            out.steps.append(StepRecord(self._itl_s, batch, 0, context))
        self._next_tick = now + self._itl_s if self._decoding else math.inf

    def _tick_after(self, now: float) -> float:
        """The next point of the grid that began with the first request ever."""
        assert self._origin is not None
        interval = self._itl_s
        return self._origin + (math.floor((now - self._origin) / interval) + 1) * interval
