"""What differs between the servers: the words for a request, for what comes back, and for what they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import Generation
from tokenfleet.worker.engines.remote.server import Server


class TokenLogprob(NamedTuple):
    token_id: int
    logprob: float
    top: Sequence[tuple[int, float]]  # the likeliest ids, the best first


class Piece(NamedTuple):
    """One message about a sequence."""

    ids: Sequence[int] = ()  # new ones
    finish: str = ""  # of the last message: why it ended, in the server's words
    cached_tokens: int = 0
    logprobs: Sequence[TokenLogprob] = ()
    all_ids: Sequence[int] | None = None  # of the last message, where the server repeats the whole answer


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the server says of itself; 0 and "" where it does not."""

    model: str
    identity: Sequence[object]  # what two servers of the same weights have in common
    engine_version: str = ""
    dtype: str = ""
    context_length: int = 0
    vocabulary_size: int = 0
    whole_vocabulary: bool = True  # the size counts ids that were added to the tokenizer
    max_sequences: int = 0
    kv_tokens: int = 0
    end_ids: Sequence[int] = ()


class ServerLoad(NamedTuple):
    """How busy it says it is, with everybody's requests."""

    running: int
    waiting: int
    kv_usage: float


class Dialect(Protocol):
    """One service. Messages are those of its generated module."""

    engine: str
    service: str
    features: frozenset[str]
    generate_request: Any
    generate_response: Any

    def request(self, generation: Generation, request_id: str) -> Any:
        """Raises FleetError for what the service cannot carry."""

    def read(self, message: Any) -> Piece: ...

    def aborts(self, request_ids: Sequence[str]) -> Iterable[tuple[Any, Any]]:
        """Requests and their answers' class, which together abort these sequences."""

    async def own_health(self, server: Server) -> str:
        """Why it cannot work, for a server without the standard health service; empty: it can."""

    async def describe(self, server: Server) -> ServerFacts:
        """Raises AioRpcError."""

    async def load(self, server: Server) -> ServerLoad | None:
        """None where the service does not tell. Raises AioRpcError."""


def or_neutral(sampling: common_pb2.SamplingParams, name: Any, neutral: float) -> float:
    """What the caller left out is neutral, whatever the model's own generation config says."""
    value: float = getattr(sampling, name) if sampling.HasField(name) else neutral
    return value


def least_tokens(generation: Generation) -> int:
    """Of `min_tokens`, what is still to come: ids behind the prompt are output already."""
    generated = len(generation.token_ids) - generation.prompt_tokens
    return max(0, generation.sampling.min_tokens - generated)
