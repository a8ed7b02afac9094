"""The simulated engine: the timing model of `core.engine_model`, driven in real time on the event loop.

Its tokens come when a real engine's would, at no cost worth mentioning, and each is a hash of all ids before
it. Sampling parameters other than lengths and stops mean nothing to it: every answer is as at temperature 0.
"""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar, Literal

from pydantic import Field

from tokenfleet.core.engine_model import (
    Advance,
    Alphabet,
    BatchingModel,
    Ended,
    Ending,
    EngineModel,
    FixedModel,
    FixedTiming,
    HashedIds,
    ModelSequence,
    PrefixCache,
    StepTiming,
)
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.arguments import EngineArguments, parse_arguments
from tokenfleet.worker.engines.base import (
    EngineFacts,
    EngineLoad,
    Finished,
    Generation,
    ModelFiles,
    Sink,
    load_failed,
)
from tokenfleet.worker.engines.step_log import Step, StepLog

# The event loop's timers round to a millisecond: what is due within half of one is due.
_TIMER_SLACK_S = 0.000_6

_REASONS = {
    Ending.STOP: common_pb2.FINISH_REASON_STOP,
    Ending.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    Ending.ABORTED: common_pb2.FINISH_REASON_CANCELLED,
}


class SimArguments(EngineArguments):
    """What a catalog entry may say about the simulated engine."""

    profile: Literal["batching", "fixed"] = "batching"
    max_sequences: int = Field(64, ge=1)
    mean_output_tokens: float = Field(256, ge=0)  # 0: answers never end by themselves
    kv_blocks: int = Field(0, ge=0)  # 0: enough for max_sequences of full length
    # profile fixed
    ttft_ms: float = Field(5, ge=0)
    itl_ms: float = Field(10, gt=0)
    # profile batching
    step_ms: float = Field(10, gt=0)
    step_us_per_sequence: float = Field(100, ge=0)
    step_ns_per_context_token: float = Field(20, ge=0)
    prefill_tokens_per_s: float = Field(8_000, gt=0)
    prefill_chunk_tokens: int = Field(2_048, ge=1)


class SimEngine:
    needs_weights: ClassVar[bool] = False
    features: ClassVar[frozenset[str]] = frozenset({"cache_events", "min_tokens", "seed"})

    def __init__(self, threads: int = 1) -> None:
        del threads
        self.steps = StepLog()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    async def load(self, model: ModelFiles, sink: Sink) -> EngineFacts:
        arguments = parse_arguments("sim", SimArguments, model.arguments)
        blocks_each = -(-model.context_length // model.block_size)
        blocks = arguments.kv_blocks or arguments.max_sequences * blocks_each
        if blocks < blocks_each:
            raise load_failed(
                f"engine sim: kv_blocks is {blocks}, but one request of {model.context_length} tokens takes "
                f"{blocks_each} blocks of {model.block_size}"
            )
        self._sink = sink
        self._mean_output_tokens = arguments.mean_output_tokens
        self._alphabet = Alphabet(model.vocabulary.token_bytes, model.vocabulary.special_ids)
        self._model = _model(arguments, PrefixCache(blocks, model.block_size, sink))
        return EngineFacts(
            fingerprint=common_pb2.Fingerprint(
                engine="sim", engine_version="1", weights_digest=model.weights_digest, dtype="hash"
            ),
            max_sequences=arguments.max_sequences,
            context_length=model.context_length,
            kv_blocks_total=blocks,
        )

    def submit(self, generation: Generation) -> None:
        sampling = generation.sampling
        generated = len(generation.token_ids) - generation.prompt_tokens
        source = HashedIds(
            self._alphabet,
            generation.token_ids,
            mean_output_tokens=0 if sampling.ignore_eos else self._mean_output_tokens,
            min_tokens=max(0, sampling.min_tokens - generated),
        )
        sequence = ModelSequence(
            generation.key,
            len(generation.token_ids),
            generation.max_tokens,
            source.next,
            generation.block_hashes,
        )
        self._model.submit(time.monotonic(), sequence)
        self._arm()

    def abort(self, key: int) -> Finished | None:
        ended = self._model.abort(time.monotonic(), key)
        self._arm()
        return None if ended is None else _finished(ended)

    def restart(self, cause: str) -> None:
        raise AssertionError(f"the simulated engine cannot fail ({cause})")

    def load_now(self) -> EngineLoad:
        return EngineLoad(*self._model.load())

    async def unload(self) -> int:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return 0

    def _arm(self) -> None:
        """One timer for the model's next event; an earlier event moves it."""
        due = self._model.next_event_at()
        if due is None or (self._timer is not None and self._timer_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        advance = self._model.advance(time.monotonic() + _TIMER_SLACK_S)
        for record in advance.steps:
            self.steps.record(Step(*record))
        self._deliver(advance)
        self._arm()

    def _deliver(self, advance: Advance) -> None:
        if advance.tokens or advance.ended:
            self._sink.step(advance.tokens, [_finished(ended) for ended in advance.ended])


def _model(arguments: SimArguments, cache: PrefixCache) -> EngineModel:
    if arguments.profile == "fixed":
        timing = FixedTiming(arguments.ttft_ms / 1e3, arguments.itl_ms / 1e3)
        return FixedModel(timing, arguments.max_sequences, cache)
    return BatchingModel(
        StepTiming(
            arguments.step_ms / 1e3,
            arguments.step_us_per_sequence / 1e6,
            arguments.step_ns_per_context_token / 1e9,
            arguments.prefill_tokens_per_s,
            arguments.prefill_chunk_tokens,
        ),
        arguments.max_sequences,
        cache,
    )


def _finished(ended: Ended) -> Finished:
    reason = _REASONS[ended.ending]
    return Finished(ended.key, reason, ended.cached_tokens, ended.queue_s, ended.prefill_s)
