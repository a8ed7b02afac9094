"""An engine in a child that speaks `stepping`'s messages: the `Engine` protocol around its process.

An engine's own module says what the child is told and what it answers (`Hosted`); everything that is the same
for all of them is here: which sequences are on it, what the worker hears of a step, and what follows when the
child dies, lacks memory, or stops to make steps.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from tokenfleet.core.engine_model import StallDetector
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.engines.base import (
    EngineFacts,
    EngineLoad,
    Finished,
    Generation,
    Logprobs,
    ModelFiles,
    Sink,
)
from tokenfleet.worker.engines.hosted.channel import WorkerEnd
from tokenfleet.worker.engines.hosted.lives import Lives
from tokenfleet.worker.engines.hosted.process import EngineProcess, typed_failure
from tokenfleet.worker.engines.hosted.stepping import FAILED, LENGTH, STOP
from tokenfleet.worker.engines.step_log import Step, StepLog

_REASONS = {
    STOP: common_pb2.FINISH_REASON_STOP,
    LENGTH: common_pb2.FINISH_REASON_LENGTH,
    FAILED: common_pb2.FINISH_REASON_FAILED,
}
_LOOK_EVERY_S = 1.0
# An engine is wedged that makes no step for so many times its slowest one.
_STEPS_MISSED = 20.0
# How long the kernel may take to report the death of a process that said its last word.
_EXIT_NOTICE_S = 5.0

log = get_logger(__name__)


class Hosted(Protocol):
    """What one engine's module adds; made anew for each model."""

    name: ClassVar[str]
    module: ClassVar[str]  # the child's main program
    start_timeout_s: float
    stall_timeout_s: float

    def config(self) -> dict[str, Any]:
        """What the child is told. Asked at each start."""

    def environment(self) -> Mapping[str, str]:
        """Variables for the child, beyond the worker's own."""

    def facts(self, ready: Mapping[str, Any], memory_bytes: int) -> EngineFacts:
        """From what the child said when it was ready. Raises FleetError when it does not fit the model."""

    def request(self, generation: Generation) -> dict[str, Any]:
        """The sequence in the child's words, beside its ids and lengths. Raises FleetError."""

    def shrink(self) -> bool:
        """Memory was short: the next start is to take less. False when there is nothing left to give."""


@dataclass(slots=True, eq=False)
class _Job:
    generation: Generation
    submitted_at: float
    number: int  # of its submit
    admitted_at: float = 0.0
    first_token_at: float = 0.0
    cached_tokens: int = 0

    def finished(
        self, reason: common_pb2.FinishReason.ValueType, failure: FleetError | None = None
    ) -> Finished:
        return Finished(
            self.generation.key,
            reason,
            self.cached_tokens,
            max(0.0, self.admitted_at - self.submitted_at),
            max(0.0, self.first_token_at - self.admitted_at),
            failure,
        )


class HostedEngine:
    """Base of the engines that live in such a child. They implement `host` and say their `features`."""

    needs_weights: ClassVar[bool] = True
    needs_folder: ClassVar[bool] = False
    features: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, threads: int) -> None:
        self.steps = StepLog()
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._lives = Lives(self._start, self._returned)
        self._process: EngineProcess | None = None
        self._channel: WorkerEnd | None = None
        self._jobs: dict[int, _Job] = {}
        self._submits = 0
        self._load: tuple[int, int, int] = (0, 0, 0)  # KV tokens, queued prefill, context
        self._seen = 0  # submits that this load counts
        self._running = 0
        self._stall: StallDetector | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._said: FleetError | None = None  # the child's own account of its death
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._call_numbers = itertools.count(1)

    def host(self, model: ModelFiles) -> Hosted:
        """Checks the model's arguments. Raises FleetError."""
        raise NotImplementedError

    async def load(self, model: ModelFiles, sink: Sink) -> EngineFacts:
        self._hosted = self.host(model)
        self._sink = sink
        self._block_size = model.block_size
        self._vocabulary = model.vocabulary
        await self._lives.begin()
        return self._facts

    def submit(self, generation: Generation) -> None:
        if not self._lives.up or self._channel is None:
            raise FleetError(common_pb2.REASON_NOT_RESIDENT, "the engine is being restarted")
        request = self._hosted.request(generation)
        self._submits += 1
        self._jobs[generation.key] = _Job(generation, time.monotonic(), self._submits)
        self._channel.send(
            {
                "submit": {
                    **request,
                    "key": generation.key,
                    "ids": list(generation.token_ids),
                    "prompt_tokens": generation.prompt_tokens,
                    "max_tokens": generation.max_tokens,
                }
            }
        )
        self._watch_for_stalls()

    def abort(self, key: int) -> Finished | None:
        job = self._jobs.pop(key, None)
        if job is None:
            return None
        self._left(job)
        if self._channel is not None:
            self._channel.send({"abort": key})
        return job.finished(common_pb2.FINISH_REASON_CANCELLED)

    def restart(self, cause: str) -> None:
        if self._lives.up and self._process is not None:
            self._process.kill(cause)

    def load_now(self) -> EngineLoad:
        if not self._jobs:
            return EngineLoad()
        kv_tokens, queued_prefill, context = self._load
        unseen = sum(len(job.generation.token_ids) for job in self._jobs.values() if job.number > self._seen)
        return EngineLoad(
            running=self._running,
            waiting=len(self._jobs) - self._running,
            kv_blocks_used=-(-kv_tokens // self._block_size),
            queued_prefill_tokens=queued_prefill + unseen,
            context_tokens=context,
        )

    async def unload(self) -> int:
        await self._lives.end()
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._process is None:
            return 0
        self._jobs.clear()
        had = self._process.memory_bytes()
        self._close_channel()
        await self._process.stop()
        return had - self._process.memory_bytes()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the engine in the child, between two steps. Raises FleetError."""
        if not self._lives.up or self._channel is None:
            raise FleetError(common_pb2.REASON_NOT_RESIDENT, "the engine is being restarted")
        number = next(self._call_numbers)
        answer = self._calls[number] = self._loop.create_future()
        self._channel.send({"call": [number, method, arguments]})
        try:
            return await answer
        finally:
            del self._calls[number]

    # What the child says

    def _received(self, message: dict[str, Any]) -> None:
        if "answer" in message:
            self._answered(*message["answer"])
        elif "failed" in message:
            self._said = typed_failure(self._hosted.name, message["failed"])
            self._loop.call_later(_EXIT_NOTICE_S, self.restart, "died")
        else:
            self._stepped(message)

    def _stepped(self, message: dict[str, Any]) -> None:
        jobs = self._jobs
        now = message["at"]
        *load, self._seen = message["load"]
        self._load = (load[0], load[1], load[2])
        if "step" in message:
            self.steps.record(Step(*message["step"]))
        for key, cached in message.get("admitted", ()):
            if (job := jobs.get(key)) is not None and not job.admitted_at:
                job.admitted_at, job.cached_tokens = now, cached
                self._running += 1
        for hashes, parent in message.get("cache", ()):
            if parent is None:
                self._sink.cache_removed(hashes)
            else:
                self._sink.cache_stored(hashes, parent)
        deltas = message.get("deltas", ())
        for key, _ in deltas:
            if (job := jobs.get(key)) is not None and not job.first_token_at:
                job.first_token_at = now
        finished = [record for one in message.get("finished", ()) if (record := self._finished(*one))]
        if deltas or finished:
            logprobs = [self._logprobs(*one) for one in message.get("logprobs", ())]
            self._sink.step(deltas, finished, logprobs)

    def _finished(self, key: int, how: str, failure: list[str] | None) -> Finished | None:
        job = self._jobs.pop(key, None)
        if job is None:
            return None
        self._left(job)
        error = None
        if failure is not None:
            error = typed_failure(self._hosted.name, {"reason": failure[0], "message": failure[1]})
        return job.finished(_REASONS[how], error)

    def _logprobs(self, key: int, token: int, logprob: float, top: list[tuple[int, float]]) -> Logprobs:
        text_of = self._vocabulary.text_of
        alternatives = [
            worker_pb2.TokenLogprobs.Alternative(token_id=one, text=text_of(one), logprob=likelihood)
            for one, likelihood in top
        ]
        return key, worker_pb2.TokenLogprobs(
            token_id=token, text=text_of(token), logprob=logprob, top=alternatives
        )

    def _left(self, job: _Job) -> None:
        self._running -= bool(job.admitted_at)

    def _answered(self, number: int, result: Any, error: str) -> None:
        answer = self._calls.get(number)
        if answer is None or answer.done():
            return
        if error:
            answer.set_exception(
                FleetError(common_pb2.REASON_ENGINE_FAILED, f"engine {self._hosted.name}: {error}")
            )
        else:
            answer.set_result(result)

    # The child process

    async def _start(self) -> None:
        hosted = self._hosted
        ours, theirs = socket.socketpair()
        process = self._process = EngineProcess(hosted.name, hosted.module, self._on_exit, self._says)
        channel = self._channel = WorkerEnd(self._received)
        self._said = None
        try:
            with theirs:
                await self._loop.create_unix_connection(lambda: channel, sock=ours)
                ready = await process.start(
                    {**hosted.config(), "channel": theirs.fileno()},
                    hosted.start_timeout_s,
                    environment=hosted.environment(),
                    pass_fds=(theirs.fileno(),),
                )
            self._facts = hosted.facts(ready, process.memory_bytes())
        except FleetError as error:
            channel.close()
            await process.stop()
            if error.reason == common_pb2.REASON_OUT_OF_MEMORY and self._lives.lived:
                hosted.shrink()
            raise
        except BaseException:
            channel.close()
            raise
        self._stall = StallDetector(
            steps_missed=_STEPS_MISSED, least_s=hosted.stall_timeout_s, interval_s=_LOOK_EVERY_S
        )

    def _says(self, doing: str) -> None:
        log.info("engine starts", engine=self._hosted.name, doing=doing)

    def _returned(self) -> None:
        self._sink.engine_up(self._facts)

    def _on_exit(self) -> None:
        """The child is gone, but perhaps not all it said was heard yet."""
        assert self._channel is not None
        self._channel.after_last(self._died)

    def _died(self) -> None:
        """Its sequences may go on elsewhere, and a new child is started."""
        process = self._process
        assert process is not None
        name = self._hosted.name
        reason = common_pb2.REASON_ENGINE_FAILED
        if process.killed_for_memory:
            reason = common_pb2.REASON_OUT_OF_MEMORY
        failure = self._said or FleetError(reason, f"engine {name} died: {process.last_words()}")
        cause = process.kill_cause or "died"
        if failure.reason == common_pb2.REASON_OUT_OF_MEMORY:
            cause = "out_of_memory"
            self._hosted.shrink()
        lost = [job.finished(common_pb2.FINISH_REASON_FAILED, failure) for job in self._jobs.values()]
        self._jobs.clear()
        self._running = self._submits = self._seen = 0
        self._load = (0, 0, 0)
        self._close_channel()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(failure)
        self._sink.step((), lost)
        self._sink.engine_down(cause, failure)
        self._lives.died()

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _watch_for_stalls(self) -> None:
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(_LOOK_EVERY_S, self._look_for_stall)

    def _look_for_stall(self) -> None:
        """Looks again as long as there is work."""
        self._watchdog = None
        busy = bool(self._jobs) and self._lives.up
        slowest_s = max((step.duration_s for step in self.steps.since(0)), default=0.0)
        assert self._stall is not None
        if self._stall.wedged(time.monotonic(), busy=busy, steps=self.steps.recorded, slowest_s=slowest_s):
            self.restart("wedged")
        elif busy:
            self._watch_for_stalls()
