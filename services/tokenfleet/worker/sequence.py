"""One sequence on this worker, and the checks a submit has to pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.engines.base import Engine, Finished
from tokenfleet.worker.outbox import Outbox
from tokenfleet.worker.resident import Resident
from tokenfleet.worker.text_assembler import TextAssembler

if TYPE_CHECKING:
    from tokenfleet.worker.session import Session


@dataclass(slots=True, eq=False)
class Sequence:
    """What the worker keeps of a submit between its first and its last token."""

    key: int
    slot: int
    attempt: int
    session: Session
    outbox: Outbox
    resident: Resident
    engine: Engine
    assembler: TextAssembler
    stop_ids: frozenset[int]
    plain: bool  # neither stop strings nor stop ids to look for
    protected: int = 0  # tokens to come before a stop id counts
    started: bool = False  # had its first token
    deadline: asyncio.TimerHandle | None = None

    def terminal(
        self,
        reason: common_pb2.FinishReason.ValueType,
        record: Finished | None = None,
        failure: FleetError | None = None,
    ) -> worker_pb2.Terminal:
        """Its last word, with what the engine's record says of its queueing and prefill."""
        terminal = worker_pb2.Terminal(slot=self.slot, attempt=self.attempt, finish_reason=reason)
        if record is not None:
            terminal.cached_tokens = record.cached_tokens
            terminal.queue_ms = round(record.queue_s * 1000)
            terminal.prefill_ms = round(record.prefill_s * 1000)
        if failure is not None:
            terminal.failure.CopyFrom(failure.to_failure())
        if self.assembler.stop_matched:
            terminal.stop_matched = self.assembler.stop_matched
        return terminal

    def cut(self, ids: SequenceOf[int]) -> tuple[SequenceOf[int], str, bool]:
        """The ids up to a stop, their text, and whether there was one."""
        stopped = False
        for position, token in enumerate(ids):
            if self.protected > 0:
                self.protected -= 1
            elif token in self.stop_ids:
                ids, stopped = ids[:position], True
                break
        text = self.assembler.push(ids)
        if self.assembler.stop_matched:
            return ids[: len(ids) - self.assembler.excess], text, True
        return ids, text + self.assembler.flush() if stopped else text, stopped


def invalid(field: str, message: str) -> FleetError:
    return FleetError(common_pb2.REASON_INVALID_ARGUMENT, f"{field}: {message}", field=field)


def check_lengths(submit: worker_pb2.Submit, token_ids: SequenceOf[int], resident: Resident) -> None:
    """Raises FleetError when the submit's ids and budget cannot be run by the resident model."""
    assert resident.facts is not None
    assert resident.pieces is not None
    held, context = len(token_ids), resident.facts.context_length
    if not 1 <= submit.prompt_tokens <= held:
        raise invalid("prompt_tokens", f"is {submit.prompt_tokens}, but token_ids holds {held} ids")
    if submit.max_tokens < 1 and held == submit.prompt_tokens:
        raise invalid("max_tokens", "must be at least 1")
    if held + submit.max_tokens > context:
        raise FleetError(
            common_pb2.REASON_CONTEXT_LENGTH_EXCEEDED,
            f"{held} tokens and a budget of {submit.max_tokens} make {held + submit.max_tokens}, but the "
            f"context of {resident.name} is {context} tokens",
            field="max_tokens",
        )
    highest = max(token_ids)
    if highest >= resident.pieces.size:
        raise invalid("token_ids", f"{highest} is not in the vocabulary of {resident.pieces.size} ids")


def check_features(sampling: common_pb2.SamplingParams, resident: Resident) -> None:
    """Raises FleetError when the request asks for what its engine cannot do."""
    assert resident.engine is not None
    asked = {
        "logprobs": sampling.HasField("logprobs"),
        "json_schema": bool(sampling.json_schema),
        "min_tokens": sampling.min_tokens > 0,
    }
    for feature, wanted in asked.items():
        if wanted and feature not in resident.engine.features:
            raise FleetError(
                common_pb2.REASON_UNSUPPORTED,
                f"{feature}: engine {resident.engine_name} of model {resident.name} does not support it",
                field=feature,
            )
    if any(not stop for stop in sampling.stop):
        raise invalid("stop", "an empty string would stop every answer at once")
