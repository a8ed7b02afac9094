"""What comes back: deltas while an answer grows, and the answer when it is complete.

Plain frozen values; the wire's messages stay inside this package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenfleet.client.errors import StreamBroken
from tokenfleet.v1 import common_pb2, inference_pb2


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, over all of its answers."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # prompt tokens that the worker had in its cache

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Loading:
    """How far the model's load has come; sent while a request waits for it."""

    model: str
    stage: str  # "queued", "fetching", "verifying", "starting_engine", "warming_up", "ready"
    bytes_done: int
    bytes_total: int  # 0 where the stage has no size
    eta_s: float | None  # seconds; None: unknown


@dataclass(frozen=True, slots=True)
class Fallback:
    """Another model answers, since the one that was asked for could not be had."""

    requested: str
    model: str  # who answers
    reason: str  # "load_failed", "out_of_memory", "no_worker", "deadline_exceeded", …


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of answer number `index`, or news of a load."""

    index: int
    text: str
    token_ids: tuple[int, ...] = ()  # only with return_token_ids
    finish_reason: str | None = None  # "stop" or "length", in the last one of its index
    usage: Usage | None = None  # in the last one of all
    loading: Loading | None = None
    fallback: Fallback | None = None  # in the first one of another model's answer


@dataclass(frozen=True, slots=True)
class Choice:
    """One complete answer."""

    text: str
    finish_reason: str  # "stop" or "length"
    token_ids: tuple[int, ...]  # only with return_token_ids


@dataclass(frozen=True, slots=True)
class Answer:
    """All that a request brought."""

    request_id: str
    model: str  # that answered
    choices: tuple[Choice, ...]  # n of them
    usage: Usage
    fallback: Fallback | None = None  # where that is not the one that was asked for

    @property
    def text(self) -> str:
        """Of the first choice, which for most requests is the only one."""
        return self.choices[0].text


@dataclass(frozen=True, slots=True)
class TokenCount:
    """A prompt's length, and the context that it has to fit into."""

    tokens: int
    context_length: int  # tokens


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the fleet's catalog."""

    name: str
    context_length: int  # tokens
    resident: bool  # loaded on some worker: the first token need not wait for that
    created_unix_s: int


class Growing:
    """The answers of one request as far as they have arrived."""

    def __init__(self) -> None:
        self.request_id = ""
        self.model = ""
        self.begun = False
        self.fallback: Fallback | None = None
        self.usage: Usage | None = None
        self._texts: dict[int, list[str]] = {}
        self._ids: dict[int, list[int]] = {}
        self._finish_reasons: dict[int, str] = {}

    def add(self, wire: inference_pb2.Delta) -> Delta:
        """Takes the wire's delta; answers it as a value."""
        self.request_id = self.request_id or wire.request_id
        self.model = wire.model or self.model
        fallback = None
        if wire.HasField("fallback"):
            fallback = self.fallback = Fallback(wire.fallback.requested, self.model, wire.fallback.reason)
        if wire.HasField("loading"):
            return Delta(wire.index, "", loading=_loading(wire.loading), fallback=fallback)
        self.begun = True
        index = wire.index
        self._texts.setdefault(index, []).append(wire.text)
        ids = tuple(wire.token_ids)
        if ids:
            self._ids.setdefault(index, []).extend(ids)
        finish_reason = None
        if wire.finish_reason:
            finish_reason = self._finish_reasons[index] = _name(
                common_pb2.FinishReason.Name, wire.finish_reason
            )
        if wire.HasField("usage"):
            usage = wire.usage
            self.usage = Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
            return Delta(index, wire.text, ids, finish_reason, self.usage, fallback=fallback)
        return Delta(index, wire.text, ids, finish_reason, fallback=fallback)

    def answer(self) -> Answer:
        """Raises StreamBroken when the end is missing."""
        if self.usage is None or self._finish_reasons.keys() != self._texts.keys():
            raise StreamBroken("the stream ended before the answer did", request_id=self.request_id)
        choices = tuple(
            Choice("".join(texts), self._finish_reasons[index], tuple(self._ids.get(index, ())))
            for index, texts in sorted(self._texts.items())
        )
        return Answer(self.request_id, self.model, choices, self.usage, self.fallback)


def count_of(wire: inference_pb2.CountTokensResponse) -> TokenCount:
    return TokenCount(wire.tokens, wire.context_length)


def models_of(wire: inference_pb2.ListModelsResponse) -> list[Model]:
    return [
        Model(model.name, model.context_length, model.resident, model.created_unix_s) for model in wire.models
    ]


def _loading(wire: common_pb2.LoadProgress) -> Loading:
    return Loading(
        model=wire.model,
        stage=_name(common_pb2.LoadProgress.Stage.Name, wire.stage),
        bytes_done=wire.bytes_done,
        bytes_total=wire.bytes_total,
        eta_s=wire.eta_ms / 1000 if wire.eta_ms else None,
    )


def _name(name_of: Callable[[Any], str], value: int) -> str:
    """`FINISH_REASON_STOP` as `stop`; a newer server may send values that have no name here."""
    try:
        name = name_of(value)
    except ValueError:
        return str(value)
    return name.removeprefix("FINISH_REASON_").removeprefix("STAGE_").lower()
