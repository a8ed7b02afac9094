"""What the schedules share: the interface, admission, and the bookkeeping of a sequence's life."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tokenfleet.core.engine_model.faults import FaultPlan
from tokenfleet.core.engine_model.prefix_cache import PrefixCache
from tokenfleet.core.engine_model.sequence import Ended, Ending, ModelSequence


class StepRecord(NamedTuple):
    """One step as it was: what a scheduler learns speeds from."""

    duration_s: float
    batch: int  # sequences that got a token
    prefill_tokens: int
    context_tokens: int


class Load(NamedTuple):
    """What occupies the engine now."""

    running: int
    waiting: int
    kv_blocks_used: int
    queued_prefill_tokens: int
    context_tokens: int


@dataclass(slots=True)
class Advance:
    """What happened up to a moment: tokens in order of time, then who ended, then the steps behind it.

    A sequence appears more than once when several of its steps were due.
    """

    tokens: list[tuple[int, tuple[int]]] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)


class EngineModel(ABC):
    """Admits sequences in order of arrival while there are places and KV blocks, and advances them.

    Once a fault has struck nothing happens any more, whatever is submitted.
    """

    def __init__(self, max_sequences: int, cache: PrefixCache, faults: FaultPlan | None = None) -> None:
        self.max_sequences = max_sequences
        self._cache = cache
        self._faults = faults or FaultPlan()
        self._waiting: dict[int, ModelSequence] = {}
        self._prefilling: dict[int, ModelSequence] = {}
        self._decoding: dict[int, ModelSequence] = {}
        self._context = 0  # tokens held by decoding sequences

    def submit(self, now: float, sequence: ModelSequence) -> None:
        """Takes the sequence; its tokens appear in later `advance` calls."""
        if sequence.budget < 1:
            raise ValueError(f"sequence {sequence.key}: budget must be at least 1, got {sequence.budget}")
        sequence.submitted_at = now
        sequence.block_hashes = sequence.block_hashes[: sequence.context_tokens // self._cache.block_size]
        self._waiting[sequence.key] = sequence
        self._admit(now)

    def abort(self, now: float, key: int) -> Ended | None:
        """Forgets the sequence and frees its blocks; None when it is not here (any more)."""
        if (waiting := self._waiting.pop(key, None)) is not None:
            return waiting.ended(Ending.ABORTED)
        sequence = self._prefilling.pop(key, None)
        if sequence is None:
            sequence = self._decoding.pop(key, None)
            if sequence is None:
                return None
            self._context -= sequence.context_tokens
        self._cache.release(sequence.block_hashes, sequence.blocks)
        self._admit(now)
        return sequence.ended(Ending.ABORTED)

    def die(self) -> list[Ended]:
        """The last words of all sequences; the model is of no use afterwards."""
        lost = [*self._waiting.values(), *self._prefilling.values(), *self._decoding.values()]
        return [sequence.ended(Ending.FAILED) for sequence in lost]

    def next_event_at(self) -> float | None:
        """The next moment at which `advance` has something to do; None while idle, or struck by a fault."""
        return None if self._faults.struck else self._due_at()

    @abstractmethod
    def _due_at(self) -> float | None:
        """The end of the next step; None while idle."""

    @abstractmethod
    def advance(self, now: float) -> Advance:
        """Everything that is due by `now`."""

    @abstractmethod
    def _admitted(self, now: float, sequence: ModelSequence) -> None:
        """Starts the sequence's prefill."""

    def load(self) -> Load:
        to_prefill = sum(sequence.to_prefill for sequence in self._prefilling.values())
        return Load(
            running=len(self._prefilling) + len(self._decoding),
            waiting=len(self._waiting),
            kv_blocks_used=self._cache.used,
            queued_prefill_tokens=to_prefill + sum(one.context_tokens for one in self._waiting.values()),
            context_tokens=self._context,
        )

    def _admit(self, now: float) -> None:
        while self._waiting and len(self._prefilling) + len(self._decoding) < self.max_sequences:
            sequence = next(iter(self._waiting.values()))
            if not self._reserve(sequence):
                return
            del self._waiting[sequence.key]
            sequence.admitted_at = now
            self._prefilling[sequence.key] = sequence
            self._admitted(now, sequence)

    def _reserve(self, sequence: ModelSequence) -> bool:
        """Holds blocks for the whole answer, so that a running sequence is never preempted."""
        size = self._cache.block_size
        blocks = -(-(sequence.context_tokens + sequence.budget) // size)
        matched = self._cache.reserve(sequence.block_hashes, blocks)
        if matched is None:
            return False
        sequence.blocks = blocks
        sequence.cached_tokens = min(matched * size, sequence.context_tokens - 1)
        sequence.to_prefill = sequence.context_tokens - sequence.cached_tokens
        return True

    def _start_decoding(self, now: float, sequence: ModelSequence) -> None:
        del self._prefilling[sequence.key]
        sequence.first_token_at = now
        sequence.to_prefill = 0
        self._decoding[sequence.key] = sequence
        self._context += sequence.context_tokens

    def _draw(self, sequences: Iterable[ModelSequence], out: Advance) -> int:
        """Gives each decoding sequence its next token; answers how many got one. The hot loop."""
        tokens, ended = out.tokens, []
        before = len(tokens)
        for sequence in sequences:
            token = sequence.draw()
            if token is None:
                ended.append((sequence, Ending.STOP))
                continue
            tokens.append((sequence.key, (token,)))
            sequence.context_tokens += 1
            sequence.budget -= 1
            if sequence.budget == 0:
                ended.append((sequence, Ending.LENGTH))
        drawn = len(tokens) - before
        self._context += drawn
        for sequence, ending in ended:
            del self._decoding[sequence.key]
            self._context -= sequence.context_tokens
            self._cache.release(sequence.block_hashes, sequence.blocks)
            out.ended.append(sequence.ended(ending))
        return drawn
