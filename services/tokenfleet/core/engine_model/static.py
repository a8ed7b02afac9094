"""Static batching: a micro-batch is computed as one rectangle and ends with its last sequence.

What comes meanwhile waits for the next batch. The sequences of a batch are padded to the longest of them, and
that padding costs like tokens do. Sequences that end early leave the rectangle (`compact`), or go on costing
until the last one has ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenfleet.core.engine_model.faults import FaultPlan
from tokenfleet.core.engine_model.model import Advance, EngineModel, StepRecord
from tokenfleet.core.engine_model.prefix_cache import PrefixCache
from tokenfleet.core.engine_model.sequence import Ended, ModelSequence
from tokenfleet.core.engine_model.timing import StepTiming
from tokenfleet.core.micro_batching import MicroBatcher


@dataclass(slots=True)
class _Step:
    began_at: float
    ends_at: float
    columns: int  # of the prompts' rectangle; 0 in a step that decodes
    prefill_tokens: int
    context_tokens: int


class StaticModel(EngineModel):
    """`computed` and `useful` count tokens: what the rectangles held, and what of it was anybody's."""

    def __init__(
        self,
        timing: StepTiming,
        batcher: MicroBatcher,
        cache: PrefixCache,
        faults: FaultPlan | None = None,
        *,
        compact: bool = True,
    ) -> None:
        """The batcher must fill no more than the cache holds."""
        super().__init__(batcher.max_batch, cache, faults)
        self._timing = timing
        self._batcher = batcher
        self._compact = compact
        self._step: _Step | None = None
        self._rows = 0
        self._columns_left = 0
        self.computed = self.useful = 0

    def submit(self, now: float, sequence: ModelSequence) -> None:
        if sequence.budget >= 1:  # otherwise refused below
            self._batcher.add(now, sequence.key, sequence.context_tokens, sequence.budget)
        super().submit(now, sequence)

    def abort(self, now: float, key: int) -> Ended | None:
        self._batcher.remove(key)
        return super().abort(now, key)

    def _due_at(self) -> float | None:
        return self._batcher.due_at() if self._step is None else self._step.ends_at

    def advance(self, now: float) -> Advance:
        out = Advance()
        while (due := self.next_event_at()) is not None and due <= now:
            if self._step is None:
                self._admit(due)
            elif self._faults.next_step():
                step, self._step = self._step, None
                self._finish(step, out)
                self._begin(step.ends_at)
                self._admit(step.ends_at)
        return out

    def _admit(self, now: float) -> None:
        if self._step is not None:
            return
        for key in self._batcher.take(now):
            sequence = self._waiting.pop(key)
            held = self._reserve(sequence)
            assert held, "the batcher's capacity is more than the cache's"
            sequence.admitted_at = now
            self._prefilling[key] = sequence
        if self._prefilling:
            self._rows = len(self._prefilling)
            self._columns_left = max(one.to_prefill for one in self._prefilling.values())
            self.useful += sum(one.to_prefill for one in self._prefilling.values())
            self._begin(now)

    def _admitted(self, now: float, sequence: ModelSequence) -> None:
        """Sequences are admitted by the batch."""

    def _begin(self, now: float) -> None:
        if not self._prefilling and not self._decoding:
            return
        rows, longest = self._rows, 0
        if self._decoding:
            if self._compact:
                rows = len(self._decoding)
            longest = max(one.context_tokens for one in self._decoding.values())
        columns = min(self._columns_left, max(1, self._timing.prefill_chunk_tokens // rows))
        decoding = 0 if columns else rows
        duration = self._timing.step_s(decoding, rows * longest, rows * columns) * self._faults.slowness
        self._step = _Step(now, now + duration, columns, rows * columns, rows * longest)
        self.computed += rows * columns + decoding

    def _finish(self, step: _Step, out: Advance) -> None:
        self._columns_left -= step.columns
        drawn = 0
        if self._columns_left == 0:
            if step.columns:
                for sequence in tuple(self._prefilling.values()):
                    self._start_decoding(step.ends_at, sequence)
            drawn = self._draw(tuple(self._decoding.values()), out)
            self.useful += 0 if step.columns else drawn
        out.steps.append(
            StepRecord(step.ends_at - step.began_at, drawn, step.prefill_tokens, step.context_tokens)
        )
