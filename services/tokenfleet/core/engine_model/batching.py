"""Continuous batching: every step decodes all running sequences and computes a chunk of waiting prompts.

A step is planned when it begins and yields its tokens when it ends; what arrives meanwhile waits for the next
one. A prompt longer than a chunk takes several steps, first come, first served.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenfleet.core.engine_model.faults import FaultPlan
from tokenfleet.core.engine_model.model import Advance, EngineModel, StepRecord
from tokenfleet.core.engine_model.prefix_cache import PrefixCache
from tokenfleet.core.engine_model.sequence import ModelSequence
from tokenfleet.core.engine_model.timing import StepTiming


@dataclass(slots=True)
class _Step:
    began_at: float
    ends_at: float
    decoding: list[ModelSequence]
    prefilling: list[tuple[ModelSequence, int]]
    prefill_tokens: int
    context_tokens: int


class BatchingModel(EngineModel):
    def __init__(
        self, timing: StepTiming, max_sequences: int, cache: PrefixCache, faults: FaultPlan | None = None
    ) -> None:
        super().__init__(max_sequences, cache, faults)
        self._timing = timing
        self._step: _Step | None = None

    def _due_at(self) -> float | None:
        return None if self._step is None else self._step.ends_at

    def advance(self, now: float) -> Advance:
        out = Advance()
        while (due := self.next_event_at()) is not None and due <= now and self._faults.next_step():
            assert self._step is not None
            step, self._step = self._step, None
            self._finish(step, out)
            self._admit(step.ends_at)
            self._begin(step.ends_at)
        return out

    def submit(self, now: float, sequence: ModelSequence) -> None:
        super().submit(now, sequence)
        if self._step is None:
            self._begin(now)

    def _admitted(self, now: float, sequence: ModelSequence) -> None:
        """The next step's plan finds it among the prefilling ones."""

    def _begin(self, now: float) -> None:
        decoding = list(self._decoding.values())
        prefilling, left = [], self._timing.prefill_chunk_tokens
        for sequence in self._prefilling.values():
            chunk = min(left, sequence.to_prefill)
            if chunk == 0:
                break
            prefilling.append((sequence, chunk))
            left -= chunk
        if not decoding and not prefilling:
            return
        prefill_tokens = self._timing.prefill_chunk_tokens - left
        duration = self._timing.step_s(len(decoding), self._context, prefill_tokens)
        duration *= self._faults.slowness
        self._step = _Step(now, now + duration, decoding, prefilling, prefill_tokens, self._context)

    def _finish(self, step: _Step, out: Advance) -> None:
        batch = [one for one in step.decoding if self._decoding.get(one.key) is one]
        for sequence, chunk in step.prefilling:
            if self._prefilling.get(sequence.key) is not sequence:
                continue  # aborted meanwhile
            sequence.to_prefill -= chunk
            if sequence.to_prefill == 0:
                self._start_decoding(step.ends_at, sequence)
                batch.append(sequence)
        drawn = self._draw(batch, out)
        out.steps.append(
            StepRecord(step.ends_at - step.began_at, drawn, step.prefill_tokens, step.context_tokens)
        )
