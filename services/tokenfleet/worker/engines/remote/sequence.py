"""One generation on the server, from its submit to its last message."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import Finished, Generation
from tokenfleet.worker.engines.end_token import EndToken
from tokenfleet.worker.engines.remote.dialects.base import Piece, TokenLogprob

# The servers' words; everything else is a failure.
_REASONS = {
    "stop": common_pb2.FINISH_REASON_STOP,
    "stop_word": common_pb2.FINISH_REASON_STOP,
    "length": common_pb2.FINISH_REASON_LENGTH,
}


@dataclass(slots=True, eq=False)
class RemoteSequence:
    """Its books; what it delivers goes through the engine."""

    generation: Generation
    request_id: str
    submitted_at: float
    call: Any = None
    reading: asyncio.Task[None] | None = None
    first_token_at: float = 0.0
    cached_tokens: int = 0
    received: int = 0  # ids, those held back included
    end: EndToken = field(default_factory=EndToken)
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of what is not delivered yet

    @property
    def key(self) -> int:
        return self.generation.key

    @property
    def context_tokens(self) -> int:
        return len(self.generation.token_ids) + self.received

    def take(self, piece: Piece, end_ids: frozenset[int]) -> list[int]:
        """The ids to deliver now."""
        new = list(piece.ids)
        if piece.all_ids is not None:
            new += piece.all_ids[self.received + len(new) :]
        self.received += len(new)
        self.logprobs += piece.logprobs
        cut_off = bool(piece.finish) and _REASONS.get(piece.finish) != common_pb2.FINISH_REASON_STOP
        return self.end.pass_on(new, end_ids, cut_off=cut_off)

    def finished(
        self, reason: common_pb2.FinishReason.ValueType, failure: FleetError | None = None
    ) -> Finished:
        prefill_s = max(0.0, self.first_token_at - self.submitted_at)
        return Finished(self.key, reason, self.cached_tokens, 0.0, prefill_s, failure)

    def ended(self, word: str) -> Finished:
        """By the server's word for why."""
        reason = _REASONS.get(word)
        if reason is not None:
            return self.finished(reason)
        failure = FleetError(
            common_pb2.REASON_ENGINE_FAILED, f"engine remote: the server ended the answer with {word!r}"
        )
        return self.finished(common_pb2.FINISH_REASON_FAILED, failure)
