"""The simulated engine: the timing model of `core.engine_model`, driven in real time on the event loop.

Its tokens come when a real engine's would, at no cost worth mentioning, and each is a hash of all ids before
it. Sampling parameters other than lengths and stops mean nothing to it: every answer is as at temperature 0.

It can be told to fail (`faults`), and then fails as an engine in a process of its own does: what ran on it is
lost, its host is not, and after a while it is back with an empty cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from tokenfleet.core.engine_model import (
    Advance,
    Alphabet,
    BatchingModel,
    Ended,
    Ending,
    EngineModel,
    Fault,
    FaultKind,
    FaultPlan,
    FixedModel,
    FixedTiming,
    HashedIds,
    ModelSequence,
    PrefixCache,
    StallDetector,
    StaticModel,
    StepTiming,
)
from tokenfleet.core.micro_batching import MicroBatcher
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.arguments import EngineArguments, parse_arguments
from tokenfleet.worker.engines.base import (
    EngineFacts,
    EngineLoad,
    Finished,
    Generation,
    ModelFiles,
    Sink,
    SleepCosts,
    load_failed,
)
from tokenfleet.worker.engines.step_log import Step, StepLog

# The event loop's timers round to a millisecond: what is due within half of one is due.
_TIMER_SLACK_S = 0.000_6

# Between two words about how its load is getting on.
_PROGRESS_S = 0.1

# Of its KV blocks an engine that ran out of memory is given so many again.
_KEPT_AFTER_OOM = 0.75

_REASONS = {
    Ending.STOP: common_pb2.FINISH_REASON_STOP,
    Ending.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    Ending.ABORTED: common_pb2.FINISH_REASON_CANCELLED,
    Ending.FAILED: common_pb2.FINISH_REASON_FAILED,
}


class FaultArguments(BaseModel):
    """One thing that goes wrong, once, in the place of a step; steps are counted over restarts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: FaultKind
    at_step: int = Field(ge=1)
    factor: float = Field(10, gt=0)  # slow_down: how many times as long everything takes; 1: as before


class SimArguments(EngineArguments):
    """What a catalog entry may say about the simulated engine."""

    profile: Literal["batching", "fixed", "static"] = "batching"
    max_sequences: int = Field(64, ge=1)
    mean_output_tokens: float = Field(256, ge=0)  # 0: answers never end by themselves
    kv_blocks: int = Field(0, ge=0)  # 0: enough for max_sequences of full length
    # profile fixed
    ttft_ms: float = Field(5, ge=0)
    itl_ms: float = Field(10, gt=0)
    # profiles batching and static
    step_ms: float = Field(10, gt=0)
    step_us_per_sequence: float = Field(100, ge=0)
    step_ns_per_context_token: float = Field(20, ge=0)
    prefill_tokens_per_s: float = Field(8_000, gt=0)
    prefill_chunk_tokens: int = Field(2_048, ge=1)
    # profile static
    window_ms: float = Field(30, ge=0)
    # loading
    load_s: float = Field(0, ge=0)
    asleep_bytes: int = Field(-1, ge=-1)  # that it keeps when it sleeps; -1: it cannot
    wake_s: float = Field(0, ge=0)
    # failures
    faults: tuple[FaultArguments, ...] = ()
    restart_s: float = Field(0.5, ge=0)  # from its death until it takes sequences again
    stall_steps: float = Field(20, gt=1)  # wedged: no step for so many times its slowest one,
    stall_least_s: float = Field(2, gt=0)  # but for no less than this


class SimEngine:
    needs_weights: ClassVar[bool] = False
    needs_folder: ClassVar[bool] = False
    features: ClassVar[frozenset[str]] = frozenset({"cache_events", "min_tokens", "seed"})

    def __init__(self, threads: int = 1) -> None:
        del threads
        self.steps = StepLog()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._returning: asyncio.TimerHandle | None = None

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
        self._arguments = arguments
        self._block_size, self._fewest_blocks = model.block_size, blocks_each
        self._plan = FaultPlan(Fault(one.kind, one.at_step, one.factor) for one in arguments.faults)
        self._facts = EngineFacts(
            fingerprint=common_pb2.Fingerprint(
                engine="sim", engine_version="1", weights_digest=model.weights_digest, dtype="hash"
            ),
            max_sequences=arguments.max_sequences,
            context_length=model.context_length,
            kv_blocks_total=blocks,
            sleep=SleepCosts(arguments.asleep_bytes, arguments.wake_s)
            if arguments.asleep_bytes >= 0
            else None,
        )
        self._model = self._new_model()
        await self._take_time(arguments.load_s, model.progress)
        return self._facts

    def submit(self, generation: Generation) -> None:
        if self._returning is not None:
            raise FleetError(common_pb2.REASON_NOT_RESIDENT, "the engine is being restarted")
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
        self._watch_for_stalls()

    def abort(self, key: int) -> Finished | None:
        ended = self._model.abort(time.monotonic(), key)
        self._arm()
        return None if ended is None else _finished(ended)

    def restart(self, cause: str) -> None:
        if self._returning is None:
            failure = FleetError(common_pb2.REASON_ENGINE_FAILED, f"engine sim was killed: {cause}")
            self._die(cause, failure)

    def load_now(self) -> EngineLoad:
        return EngineLoad(*self._model.load())

    async def sleep(self) -> int:
        return await self.unload()

    async def wake(self) -> None:
        await asyncio.sleep(self._arguments.wake_s)
        self._model = self._new_model()

    async def _take_time(self, seconds: float, progress: Callable[[float], None]) -> None:
        """As long as a real one takes to read its weights."""
        steps = max(1, round(seconds / _PROGRESS_S))
        for step in range(steps):
            progress(step / steps)
            await asyncio.sleep(seconds / steps)

    async def unload(self) -> int:
        for timer in (self._timer, self._watchdog, self._returning):
            if timer is not None:
                timer.cancel()
        self._timer = self._watchdog = self._returning = None
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
        if self._plan.struck is FaultKind.CRASH:
            failure = FleetError(common_pb2.REASON_ENGINE_FAILED, "engine sim died: it was told to crash")
            self._die("died", failure)
        elif self._plan.struck is FaultKind.OUT_OF_MEMORY:
            failure = FleetError(common_pb2.REASON_OUT_OF_MEMORY, "engine sim ran out of memory")
            self._die("out_of_memory", failure)
        self._arm()

    def _deliver(self, advance: Advance) -> None:
        if advance.tokens or advance.ended:
            self._sink.step(advance.tokens, [_finished(ended) for ended in advance.ended])

    # Failures

    def _die(self, cause: str, failure: FleetError) -> None:
        """Everything on it is lost; with a smaller cache where memory was short, it soon begins anew."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lost = [_finished(ended, failure) for ended in self._model.die()]
        if failure.reason == common_pb2.REASON_OUT_OF_MEMORY:
            blocks = max(self._fewest_blocks, int(self._facts.kv_blocks_total * _KEPT_AFTER_OOM))
            self._facts = replace(self._facts, kv_blocks_total=blocks)
        self._model = self._new_model()
        self._returning = self._loop.call_later(self._arguments.restart_s, self._return)
        self._sink.step((), lost)
        self._sink.engine_down(cause, failure)

    def _return(self) -> None:
        self._returning = None
        self._plan.restarted()
        self._sink.engine_up(self._facts)

    def _new_model(self) -> EngineModel:
        cache = PrefixCache(self._facts.kv_blocks_total, self._block_size, self._sink)
        return _model(self._arguments, cache, self._plan)

    @property
    def _stall_interval_s(self) -> float:
        return self._arguments.stall_least_s / 4

    def _stall_detector(self) -> StallDetector:
        return StallDetector(
            steps_missed=self._arguments.stall_steps,
            least_s=self._arguments.stall_least_s,
            interval_s=self._stall_interval_s,
        )

    def _watch_for_stalls(self) -> None:
        if self._watchdog is None:
            self._stall = self._stall_detector()
            self._look_for_stall()

    def _look_for_stall(self) -> None:
        """Looks again as long as there is work."""
        self._watchdog = None
        load = self._model.load()
        busy = load.running + load.waiting > 0
        slowest_s = max((step.duration_s for step in self.steps.since(0)), default=0.0)
        if self._stall.wedged(time.monotonic(), busy=busy, steps=self.steps.recorded, slowest_s=slowest_s):
            self.restart("wedged")
        elif busy:
            self._watchdog = self._loop.call_later(self._stall_interval_s, self._look_for_stall)


def _model(arguments: SimArguments, cache: PrefixCache, faults: FaultPlan) -> EngineModel:
    if arguments.profile == "fixed":
        fixed = FixedTiming(arguments.ttft_ms / 1e3, arguments.itl_ms / 1e3)
        return FixedModel(fixed, arguments.max_sequences, cache, faults)
    timing = StepTiming(
        arguments.step_ms / 1e3,
        arguments.step_us_per_sequence / 1e6,
        arguments.step_ns_per_context_token / 1e9,
        arguments.prefill_tokens_per_s,
        arguments.prefill_chunk_tokens,
    )
    if arguments.profile == "static":
        batcher = MicroBatcher(
            window_s=arguments.window_ms / 1e3,
            max_batch=arguments.max_sequences,
            capacity_tokens=cache.capacity * cache.block_size,
        )
        return StaticModel(timing, batcher, cache, faults)
    return BatchingModel(timing, arguments.max_sequences, cache, faults)


def _finished(ended: Ended, failure: FleetError | None = None) -> Finished:
    reason = _REASONS[ended.ending]
    return Finished(ended.key, reason, ended.cached_tokens, ended.queue_s, ended.prefill_s, failure)
