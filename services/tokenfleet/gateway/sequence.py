"""One answer being generated, whichever worker is at it.

The gateway keeps what a resume needs: the ids that were generated and how many characters of text the client
was given. Everything else about a sequence lives on a worker and may be lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Protocol

from tokenfleet.gateway.lanes import Lane
from tokenfleet.gateway.packed_prompt import PackedPrompt
from tokenfleet.gateway.urgency import STANDARD, Urgency
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import router_pb2, worker_pb2


class Sink(Protocol):
    """Where an answer goes: an SSE stream, a collected response, a gRPC stream."""

    async def open(self) -> None:
        """A worker was found; called before its first delta, and again on every resume."""

    def delta(self, index: int, text: str, ids: list[int]) -> None:
        """New text and ids of answer `index`; called by the step handler, must not block."""

    def logprobs(self, index: int, entry: worker_pb2.TokenLogprobs) -> None:
        """Of a token that the next delta of answer `index` brings; only where the request asked for them."""

    def loading(self, progress: pb.LoadProgress) -> None:
        """The model is being loaded."""


@dataclass(slots=True)
class Generation:
    """What all n answers of one client request share."""

    context: pb.RequestContext
    model: str
    sampling: pb.SamplingParams
    deadline: float  # on the event loop's clock
    prompt: PackedPrompt
    prompt_tokens: int
    features: SequenceOf[str] = ()  # that the engine must have
    replaceable: bool = False  # another model may answer instead
    urgency: Urgency = STANDARD

    def context_at(self, now: float) -> pb.RequestContext:
        """The context for the next hop, with the time that is left; good until the next call."""
        self.context.deadline_ms = max(1, round((self.deadline - now) * 1000))
        return self.context


@dataclass(slots=True)
class Attempt:
    """Where a sequence ran, and from which token on; reported to clients that ask for token ids."""

    worker_id: str
    from_token: int


@dataclass(slots=True, eq=False)
class Sequence:
    """The state of one answer."""

    generation: Generation
    index: int
    budget: int  # tokens, over all attempts
    sink: Sink
    ids: list[int] = field(default_factory=list)
    emitted_chars: int = 0
    attempt: int = 0
    failures: int = 0  # in a row without a token between them
    attempts: list[Attempt] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    preferred: pb.Fingerprint | None = None
    cached_tokens: int = 0
    finish_reason: int = 0
    submitted_at: float = 0.0
    first_token_at: float = 0.0  # of this attempt
    last_token_at: float = 0.0  # of this attempt
    slot: int = -1
    lane: Lane | None = None  # set while plain text need not pass by the sink
    ended: asyncio.Future[worker_pb2.Terminal] | None = None
    loading: pb.LoadProgress | None = None  # of its model, while it waits for that

    @property
    def left(self) -> int:
        """Tokens still to generate; 0 when only the worker's last word is missing."""
        return max(0, self.budget - len(self.ids))

    def end(self, terminal: worker_pb2.Terminal) -> None:
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(terminal)

    def fill(self, submit: worker_pb2.Submit, placement: router_pb2.Placement, now: float) -> None:
        """The request as the placed worker gets it: the prompt and what was generated so far."""
        generation = self.generation
        submit.slot = self.slot
        submit.attempt = self.attempt
        submit.context.CopyFrom(generation.context_at(now))
        submit.model = placement.model
        submit.residency_epoch = placement.residency_epoch
        submit.prompt_tokens = generation.prompt_tokens
        submit.emitted_chars = self.emitted_chars
        submit.max_tokens = self.left
        submit.original_max_tokens = self.budget
        submit.sampling.CopyFrom(generation.sampling)
        submit.reservation_id = placement.reservation_id
        generation.prompt.add_to_submit(submit)
        if self.ids:
            submit.token_ids.extend(self.ids)
        if self.index and generation.sampling.HasField("seed"):
            submit.sampling.seed = (generation.sampling.seed + self.index) % 2**64

    def release(self, ask_id: int, terminal: worker_pb2.Terminal) -> router_pb2.Release:
        """What the router should learn of the attempt that just ended."""
        attempt_tokens = len(self.ids) - (self.attempts[-1].from_token if self.attempts else 0)
        release = router_pb2.Release(
            ask_id=ask_id,
            outcome=_outcome(terminal),
            cached_tokens=terminal.cached_tokens,
            completion_tokens=attempt_tokens,
        )
        if self.first_token_at:
            release.ttft_s = self.first_token_at - self.submitted_at
            if attempt_tokens > 1:
                release.itl_s = (self.last_token_at - self.first_token_at) / (attempt_tokens - 1)
        return release


_FAILED_OUTCOMES = {
    pb.REASON_WORKER_LOST: router_pb2.Release.OUTCOME_WORKER_LOST,
    pb.REASON_NOT_RESIDENT: router_pb2.Release.OUTCOME_NOT_RESIDENT,
}


def _outcome(terminal: worker_pb2.Terminal) -> router_pb2.Release.Outcome.ValueType:
    if terminal.finish_reason == pb.FINISH_REASON_FAILED:
        return _FAILED_OUTCOMES.get(terminal.failure.reason, router_pb2.Release.OUTCOME_FAILED)
    if terminal.finish_reason == pb.FINISH_REASON_CANCELLED:
        return router_pb2.Release.OUTCOME_CANCELLED
    return router_pb2.Release.OUTCOME_FINISHED
