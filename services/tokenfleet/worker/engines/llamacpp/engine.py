"""The llama.cpp engine: continuous batching in a child process, whose death is not the worker's."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar

from pydantic import Field

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2, worker_pb2
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
from tokenfleet.worker.engines.gathered_step import GatheredStep
from tokenfleet.worker.engines.hosted.lives import Lives
from tokenfleet.worker.engines.llamacpp.process import LlamaProcess
from tokenfleet.worker.engines.llamacpp.recovery import Recovery
from tokenfleet.worker.engines.llamacpp.request import check_supported, completion_body
from tokenfleet.worker.engines.llamacpp.scheduler import Job, Scheduler
from tokenfleet.worker.engines.llamacpp.step_clock import StepClock
from tokenfleet.worker.engines.llamacpp.stream import CompletionStream
from tokenfleet.worker.engines.step_log import StepLog

# KV tokens that a slot has on average, when the entry does not say.
TOKENS_PER_SLOT = 1_024
WATCHDOG_S = 1.0
# How long the kernel may take to report the death of a process whose connections broke.
EXIT_NOTICE_S = 1.0
_OVERFLOW = "Context size has been exceeded"

log = get_logger(__name__)


class LlamaCppArguments(EngineArguments):
    """What a catalog entry may say about this engine, in llama.cpp's words where it has any."""

    n_parallel: int = Field(16, ge=1, le=256)  # sequences at once
    n_ctx: int = Field(0, ge=0)  # KV tokens shared by all of them; 0: one full context or 1,024 each
    n_batch: int = Field(0, ge=0)  # tokens of a step; 0: by the device
    n_threads: int = Field(0, ge=0)  # 0: the worker's share
    n_gpu_layers: int = Field(-1, ge=-1)  # -1: all that fit
    start_timeout_s: float = Field(600, gt=0)
    stall_timeout_s: float = Field(60, gt=0)  # no sign of life for so long, with work to do: wedged


class LlamaCppEngine:
    needs_weights: ClassVar[bool] = True
    needs_folder: ClassVar[bool] = False
    features: ClassVar[frozenset[str]] = frozenset({"json_schema", "logprobs", "seed"})

    def __init__(self, threads: int) -> None:
        self.steps = StepLog()
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._clock = StepClock(self.steps)
        self._process: LlamaProcess | None = None
        self._lives = Lives(self._start, self._returned)
        self._last_sign = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[Any]] = set()

    async def load(self, model: ModelFiles, sink: Sink) -> EngineFacts:
        if find_spec("xllamacpp") is None:
            raise load_failed("engine llamacpp is not installed: pip install 'tokenfleet[worker-llamacpp]'")
        self._arguments = arguments = parse_arguments("llamacpp", LlamaCppArguments, model.arguments)
        self._sink = sink
        self._step = GatheredStep(sink)
        self._block_size = model.block_size
        self._special_ids = model.vocabulary.special_ids
        self._recovery = Recovery(model.vocabulary.token_bytes)
        kv_tokens = arguments.n_ctx or max(model.context_length, arguments.n_parallel * TOKENS_PER_SLOT)
        self._config = {
            "model": str(model.weights),
            "n_parallel": arguments.n_parallel,
            "n_ctx": kv_tokens,
            "n_batch": arguments.n_batch,
            "n_threads": arguments.n_threads or self._threads,
            "n_gpu_layers": arguments.n_gpu_layers,
        }
        self._scheduler = Scheduler(arguments.n_parallel, kv_tokens)
        await self._lives.begin()
        process = self._process
        assert process is not None
        meta = await asyncio.to_thread(process.model_facts)
        model.check_vocabulary("llamacpp", meta["n_vocab"])
        return EngineFacts(
            fingerprint=common_pb2.Fingerprint(
                engine="llamacpp",
                engine_version=version("xllamacpp"),
                weights_digest=model.weights_digest,
                dtype=str(meta.get("ftype", "")),
            ),
            max_sequences=arguments.n_parallel,
            context_length=min(model.context_length, meta["n_ctx_train"], kv_tokens),
            kv_blocks_total=kv_tokens // model.block_size,
            memory_bytes=process.memory_bytes(),
            vocabulary_size=meta["n_vocab"],
        )

    def submit(self, generation: Generation) -> None:
        if not self._lives.up:
            raise FleetError(common_pb2.REASON_NOT_RESIDENT, "the engine is being restarted")
        check_supported(generation)
        self._scheduler.add(Job(generation, time.monotonic()))
        self._start_jobs()

    def abort(self, key: int) -> Finished | None:
        job = self._scheduler.remove(key)
        if job is None:
            return None
        self._hang_up(job)
        self._start_jobs()
        return job.finished(common_pb2.FINISH_REASON_CANCELLED)

    def restart(self, cause: str) -> None:
        if self._lives.up and self._process is not None:
            self._process.kill(cause)

    def load_now(self) -> EngineLoad:
        scheduler = self._scheduler
        queued = sum(job.to_prefill for job in scheduler.running.values())
        return EngineLoad(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_blocks_used=-(-scheduler.held // self._block_size),
            queued_prefill_tokens=queued + sum(job.tokens for job in scheduler.waiting),
            context_tokens=scheduler.held,
        )

    async def unload(self) -> int:
        await self._lives.end()
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._process is None:
            return 0
        for job in self._scheduler.drain():
            self._hang_up(job)
        freed = self._process.memory_bytes()
        await self._process.stop()
        return freed - self._process.memory_bytes()

    # Sequences

    def _start_jobs(self) -> None:
        while (job := self._scheduler.next()) is not None:
            if not job.admitted_at:
                job.admitted_at = time.monotonic()
            job.to_prefill = job.tokens
            job.stream = CompletionStream(
                completion_body(job.next_run()),
                lambda event, job=job: self._on_event(job, event),  # type: ignore[misc]
                lambda status, message, job=job: self._on_broken(job, status, message),  # type: ignore[misc]
            )
            self._connect(job, job.stream)
        self._watch_for_stalls()

    def _connect(self, job: Job, stream: CompletionStream) -> None:
        assert self._process is not None
        path = self._process.socket

        async def connect() -> None:
            try:
                await self._loop.create_unix_connection(lambda: stream, path)
            except OSError as error:
                if job.stream is stream:
                    self._on_broken(job, 0, f"cannot reach the engine: {error}")

        task = asyncio.create_task(connect())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def _hang_up(self, job: Job) -> None:
        if job.stream is not None:
            job.stream.abort()
            job.stream = None
        if not self._scheduler.running:
            self._clock.idle()

    def _on_event(self, job: Job, event: dict[str, Any]) -> None:
        now = self._last_sign = time.monotonic()
        if "prompt_progress" in event:
            self._on_progress(job, event["prompt_progress"], now)
        elif event["stop"]:
            self._on_last(job, event)
        else:
            self._on_tokens(job, event, now)

    def _on_progress(self, job: Job, progress: dict[str, int], now: float) -> None:
        if not job.prefilled and not job.emitted:
            job.cached_tokens = progress["cache"]
        computed = progress["processed"] - max(job.prefilled, progress["cache"])
        job.prefilled = progress["processed"]
        job.to_prefill = progress["total"] - progress["processed"]
        if computed > 0:
            self._clock.spoke(now, job.key, self._scheduler.held, computed)
        else:
            self._clock.began(now)

    def _on_tokens(self, job: Job, event: dict[str, Any], now: float) -> None:
        ids: list[int] = event["tokens"]
        missing = event["tokens_predicted"] - job.predicted - len(ids)
        job.predicted = event["tokens_predicted"]
        job.to_prefill = 0
        if missing > 0 and ids:
            ids = [*self._recovery.missing(event["content"], missing, ids[-1]), *ids]
        if job.ending is not None:
            ids = [job.ending, *ids]
            job.ending = None
        if ids and ids[-1] in self._special_ids:
            *ids, job.ending = ids
        if not job.first_token_at:
            job.first_token_at = now
        self._clock.spoke(now, job.key, self._scheduler.held)
        if ids:
            self._deliver(job, ids)
        if "completion_probabilities" in event:
            self._step.logprobs((job.key, _logprobs(one)) for one in event["completion_probabilities"])
        if (victim := self._scheduler.victim()) is not None:
            self._take_out(victim)

    def _deliver(self, job: Job, ids: list[int]) -> None:
        job.emitted += ids
        self._scheduler.grew(len(ids))
        self._step.tokens(job.key, ids)

    def _on_last(self, job: Job, event: dict[str, Any]) -> None:
        by_itself = event["stop_type"] == "eos"
        if job.ending is not None and not by_itself:
            self._deliver(job, [job.ending])
        reason = common_pb2.FINISH_REASON_STOP if by_itself else common_pb2.FINISH_REASON_LENGTH
        self._finish(job, job.finished(reason))

    def _on_broken(self, job: Job, status: int, message: str) -> None:
        """The completion failed; where the cache overflowed after all, it is only postponed."""
        job.stream = None
        if message.startswith(_OVERFLOW) and job.preemptible and len(self._scheduler.running) > 1:
            self._take_out(job)
            return
        reason = common_pb2.REASON_INVALID_ARGUMENT if status == 400 else common_pb2.REASON_ENGINE_FAILED
        failure = FleetError(reason, f"engine llamacpp: {message}")
        record = job.finished(common_pb2.FINISH_REASON_FAILED, failure=failure)
        if status == 0:  # most likely it died: `_on_exit` is about to say how
            self._loop.call_later(EXIT_NOTICE_S, self._finish, job, record)
        else:
            self._finish(job, record)

    def _take_out(self, job: Job) -> None:
        log.info("sequence preempted", key=job.key, tokens=job.tokens, kv_tokens=self._scheduler.held)
        self._hang_up(job)
        self._scheduler.take_out(job)
        self._loop.call_soon(self._start_jobs)

    def _finish(self, job: Job, record: Finished) -> None:
        if self._scheduler.remove(job.key) is None:
            return
        job.stream = None
        self._step.ended(record)
        if not self._scheduler.running:
            self._clock.idle()
        self._start_jobs()

    # The child process

    async def _start(self) -> None:
        process = self._process = LlamaProcess(self._on_exit)
        config = {**self._config, "socket": process.socket}
        await process.start(config, self._arguments.start_timeout_s)

    def _returned(self) -> None:
        self._sink.engine_up()

    def _on_exit(self) -> None:
        """The child is gone: its sequences may go on elsewhere, and a new child is started."""
        process = self._process
        assert process is not None
        failure = FleetError(common_pb2.REASON_ENGINE_FAILED, f"engine llamacpp died: {process.last_words()}")
        for job in self._scheduler.drain():
            self._hang_up(job)
            self._step.ended(job.finished(common_pb2.FINISH_REASON_FAILED, failure=failure))
        self._clock.idle()
        self._step.flush()
        self._sink.engine_down(process.kill_cause or "died", failure)
        self._lives.died()

    def _watch_for_stalls(self) -> None:
        if self._watchdog is None and self._scheduler.running:
            self._last_sign = time.monotonic()
            self._watchdog = self._loop.call_later(WATCHDOG_S, self._look_for_stall)

    def _look_for_stall(self) -> None:
        """An engine with work that says nothing for too long is wedged, whatever its process looks like."""
        self._watchdog = None
        if not self._scheduler.running:
            return
        if time.monotonic() - self._last_sign > self._arguments.stall_timeout_s:
            self.restart("wedged")
        self._watchdog = self._loop.call_later(WATCHDOG_S, self._look_for_stall)


def _logprobs(record: dict[str, Any]) -> worker_pb2.TokenLogprobs:
    top = [
        worker_pb2.TokenLogprobs.Alternative(token_id=one["id"], text=one["token"], logprob=one["logprob"])
        for one in record["top_logprobs"]
    ]
    return worker_pb2.TokenLogprobs(
        token_id=record["id"], text=record["token"], logprob=record["logprob"], top=top
    )
