"""Which sequences run, given slots and a KV cache that all of them share.

llama.cpp checks neither: a sequence too many waits in it out of sight, and when the shared cache overflows it
fails every running sequence at once. So sequences wait here until there is a slot, and room for their prompt
and a little more. When answers grow beyond that, the youngest is taken out and continued later from what it
has; its prefix is usually still cached.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import Finished, Generation
from tokenfleet.worker.engines.llamacpp.stream import CompletionStream

# Tokens a sequence is expected to generate at least, when it is admitted.
HEADROOM = 64
# Room per slot for tokens on their way: those of a step, and parts of a character.
MARGIN_PER_SLOT = 8


@dataclass(slots=True, eq=False)
class Job:
    """One sequence in this engine, over all its runs."""

    generation: Generation
    submitted_at: float
    emitted: list[int] = field(default_factory=list)
    admitted_at: float = 0.0
    first_token_at: float = 0.0
    cached_tokens: int = 0
    stream: CompletionStream | None = None
    # of the present run
    predicted: int = 0  # tokens that llama.cpp says it generated
    to_prefill: int = 0
    prefilled: int = 0
    ending: int | None = None  # a special token, delivered only if the answer goes on behind it
    preemptions: int = 0

    @property
    def key(self) -> int:
        return self.generation.key

    @property
    def tokens(self) -> int:
        """Held in the KV cache, once prefilled."""
        return len(self.generation.token_ids) + len(self.emitted)

    @property
    def preemptible(self) -> bool:
        """A grammar's state cannot be rebuilt."""
        return not self.generation.sampling.json_schema

    def next_run(self) -> Generation:
        """What llama.cpp is asked now: the sequence as it is."""
        asked = self.generation
        if not self.emitted:
            return asked
        ids = [*asked.token_ids, *self.emitted]
        left = asked.max_tokens - len(self.emitted)
        return Generation(asked.key, ids, asked.prompt_tokens, left, asked.sampling)

    def finished(self, reason: common_pb2.FinishReason.ValueType, **fields: Any) -> Finished:
        return Finished(
            self.key,
            reason,
            self.cached_tokens,
            max(0.0, self.admitted_at - self.submitted_at),
            max(0.0, self.first_token_at - self.admitted_at),
            **fields,
        )


class Scheduler:
    """Bookkeeping only: the engine starts and stops what this says."""

    def __init__(self, slots: int, kv_tokens: int) -> None:
        self._slots = slots
        self._capacity = kv_tokens - MARGIN_PER_SLOT * slots
        self.waiting: deque[Job] = deque()
        self.running: dict[int, Job] = {}
        self.held = 0  # KV tokens of the running ones

    def add(self, job: Job) -> None:
        self.waiting.append(job)

    def next(self) -> Job | None:
        """The job to start now, counted as running from here on; None when the next one has to wait."""
        if not self.waiting or len(self.running) >= self._slots:
            return None
        job = self.waiting[0]
        wanted = job.tokens + min(HEADROOM, job.generation.max_tokens - len(job.emitted))
        if self.running and self.held + wanted > self._capacity:
            return None
        self.waiting.popleft()
        self.running[job.key] = job
        self.held += job.tokens
        return job

    def grew(self, tokens: int) -> None:
        """Running jobs hold so many tokens more."""
        self.held += tokens

    def victim(self) -> Job | None:
        """The youngest job to take out, when the cache is nearly full."""
        if self.held <= self._capacity or len(self.running) < 2:
            return None
        preemptible = [job for job in self.running.values() if job.preemptible]
        return preemptible[-1] if preemptible else None

    def take_out(self, job: Job) -> None:
        """Back to the head of the queue."""
        self._stopped(job)
        job.predicted = job.prefilled = job.to_prefill = 0
        job.ending = None
        job.preemptions += 1
        self.waiting.appendleft(job)

    def remove(self, key: int) -> Job | None:
        """Forgets the job, wherever it is."""
        job = self.running.get(key)
        if job is not None:
            self._stopped(job)
            return job
        for waiting in self.waiting:
            if waiting.key == key:
                self.waiting.remove(waiting)
                return waiting
        return None

    def drain(self) -> list[Job]:
        """Forgets everything; answers what was there."""
        jobs = [*self.running.values(), *self.waiting]
        self.running.clear()
        self.waiting.clear()
        self.held = 0
        return jobs

    def _stopped(self, job: Job) -> None:
        del self.running[job.key]
        self.held -= job.tokens
