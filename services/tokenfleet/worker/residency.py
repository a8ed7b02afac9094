"""Which models this worker holds, and how they come and go.

The loader orders, the worker owns: it alone counts who uses a model, so it alone can say that one is idle.
Loads and unloads happen one at a time. Every load has an epoch that is larger than all before it, also those
of this worker's former lives, and whoever unloads or submits with an old one is refused.

A model that is to go is first published as unloading, and for a moment still takes what was placed here
before the word got round. If it was to go only when idle and anything came, it stays after all; otherwise it
refuses new sequences, and goes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar, cast

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.lifecycle import freeze_heap, shrink_heap
from tokenfleet.runtime.models import ModelCache, load_vocabulary
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.cache_log import CacheLog
from tokenfleet.worker.dispatcher import Dispatcher
from tokenfleet.worker.engines.base import ModelFiles, SleepingEngine, load_failed
from tokenfleet.worker.engines.registry import engine_factory
from tokenfleet.worker.loading import LoadJob, Stage
from tokenfleet.worker.memory import Memory
from tokenfleet.worker.resident import Resident, State
from tokenfleet.worker.supervision import EngineSink
from tokenfleet.worker.text_assembler import Pieces

DEFAULT_BLOCK_SIZE = 16
# For the word that a model leaves to get round.
LINGER_S = 0.1

Outcome = TypeVar("Outcome")

log = get_logger(__name__)


class Residency:
    """Loads and unloads; `residents` also holds what is on its way in or out, and what failed last."""

    def __init__(
        self,
        cache: ModelCache,
        dispatcher: Dispatcher,
        residents: dict[str, Resident],
        cache_log: CacheLog,
        *,
        engines: list[str],
        threads: int,
        engine_arguments: Mapping[str, Mapping[str, object]],
        memory: Memory,
        canary_timeout_s: float,
        worker_id: str,
        changed: Callable[[], None],
        restarted: Callable[[str], None],
        step_seconds: Callable[[float], None],
    ) -> None:
        self.residents = residents
        self.memory = memory
        self.engines = engines
        self._cache = cache
        self._dispatcher = dispatcher
        self._cache_log = cache_log
        self._threads = threads
        self._engine_arguments = engine_arguments
        self._canary_timeout_s = canary_timeout_s
        self._worker_id = worker_id
        self._changed = changed
        self._restarted = restarted
        self._step_seconds = step_seconds
        self._one_at_a_time = asyncio.Lock()
        self._jobs: dict[str, LoadJob] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last_epoch = time.time_ns() // 1_000_000

    @property
    def loading(self) -> bool:
        return bool(self._jobs)

    @property
    def _held_bytes(self) -> int:
        return sum(one.held_bytes for one in self.residents.values())

    async def load(
        self, spec: common_pb2.ModelSpec, engine: str
    ) -> AsyncIterator[worker_pb2.LoadModelResponse]:
        """Progress until ready or failed. A load goes on when its caller leaves; who comes later joins it."""
        job = self._jobs.get(spec.name)
        if job is None:
            job = self._jobs[spec.name] = LoadJob(spec.name, self._worker_id)
            self._start(self._run(job, spec, engine))
        async for progress in job.follow():
            response = worker_pb2.LoadModelResponse(progress=progress)
            if progress.stage == Stage.STAGE_READY and spec.name in self.residents:
                response.residency_epoch = self.residents[spec.name].epoch
            yield response

    async def unload(
        self, request: worker_pb2.UnloadModelRequest, grace_s: float
    ) -> AsyncIterator[worker_pb2.UnloadModelResponse]:
        """Refuses with FleetError, or lets what runs finish within the grace, and frees the memory.

        Like a load it goes on when its caller leaves.
        """
        resident = self._fenced(request)
        going = self._start(self._let_go(request, grace_s))
        while not going.done():
            if resident.closed and resident.running:
                yield worker_pb2.UnloadModelResponse(
                    stage=worker_pb2.UnloadModelResponse.STAGE_DRAINING, running=resident.running
                )
            change = asyncio.ensure_future(self._dispatcher.changed.after(self._dispatcher.changed.version))
            await asyncio.wait((going, change), return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
        yield await going

    async def close(self) -> None:
        """Ends running loads and unloads everything."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for resident in tuple(self.residents.values()):
            await self._remove(resident)

    def _start(self, work: Coroutine[Any, Any, Outcome]) -> asyncio.Task[Outcome]:
        """Goes on whatever becomes of who asked for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _let_go(
        self, request: worker_pb2.UnloadModelRequest, grace_s: float
    ) -> worker_pb2.UnloadModelResponse:
        async with self._one_at_a_time:
            resident = self._fenced(request)
            if resident.state == State.STATE_READY:
                await self._announce(resident, request)
                await self._finish(resident, grace_s)
            if request.sleep and resident.facts is not None and resident.facts.sleep is not None:
                return await self._put_to_sleep(resident)
            return await self._unload(resident)

    async def _announce(self, resident: Resident, request: worker_pb2.UnloadModelRequest) -> None:
        """Raises FleetError BUSY when it was to go only when idle, and somebody came."""
        arrivals = resident.arrivals
        resident.state = State.STATE_UNLOADING
        self._changed()
        try:
            await asyncio.sleep(LINGER_S)
        except asyncio.CancelledError:
            self._stay(resident)
            raise
        if request.if_idle and (resident.running or resident.arrivals > arrivals):
            self._stay(resident)
            raise FleetError(common_pb2.REASON_BUSY, f"a sequence came while {resident.name} was to leave")
        resident.closed = True
        self._dispatcher.changed.notify()

    def _stay(self, resident: Resident) -> None:
        resident.state = State.STATE_LOADING if resident.down else State.STATE_READY
        self._changed()

    async def _finish(self, resident: Resident, grace_s: float) -> None:
        """Waits for what runs; what takes too long goes on elsewhere."""
        deadline = time.monotonic() + grace_s
        while resident.running:
            seen = self._dispatcher.changed.version
            if not await self._dispatcher.changed.after(seen, deadline - time.monotonic()):
                self._dispatcher.fail(self._dispatcher.live(resident), _unloaded(resident))

    async def _unload(self, resident: Resident) -> worker_pb2.UnloadModelResponse:
        before = self.memory.now()
        await self._remove(resident)
        shrink_heap()
        freed, missing = self.memory.freed(
            resident.name, before, resident.occupied_bytes, empty=not self.residents
        )
        if missing:
            self._changed()
        return worker_pb2.UnloadModelResponse(
            stage=worker_pb2.UnloadModelResponse.STAGE_UNLOADED, freed_bytes=freed, missing_bytes=missing
        )

    async def _put_to_sleep(self, resident: Resident) -> worker_pb2.UnloadModelResponse:
        try:
            freed = await cast(SleepingEngine, resident.engine).sleep()
        except FleetError as error:
            log.warning("model does not fall asleep: unloaded", model=resident.name, detail=error.message)
            return await self._unload(resident)
        resident.state = State.STATE_ASLEEP
        self._cache_log.cleared(resident.name)
        log.info("model sleeps", model=resident.name, epoch=resident.epoch, freed_bytes=freed)
        self._changed()
        return worker_pb2.UnloadModelResponse(
            stage=worker_pb2.UnloadModelResponse.STAGE_ASLEEP, freed_bytes=freed
        )

    def _fenced(self, request: worker_pb2.UnloadModelRequest) -> Resident:
        resident = self.residents.get(request.model)
        if resident is None:
            raise FleetError(
                common_pb2.REASON_NOT_RESIDENT, f"model {request.model} is not on this worker", field="model"
            )
        if request.residency_epoch not in (0, resident.epoch):
            raise FleetError(
                common_pb2.REASON_NOT_RESIDENT,
                f"model {request.model} was loaded again: its epoch is {resident.epoch}, "
                f"not {request.residency_epoch}",
                field="residency_epoch",
            )
        if request.if_idle and resident.running:
            raise FleetError(
                common_pb2.REASON_BUSY, f"{resident.running} sequences run on model {request.model}"
            )
        if request.if_idle and request.HasField("arrivals") and resident.arrivals > request.arrivals:
            raise FleetError(
                common_pb2.REASON_BUSY,
                f"model {request.model} was asked {resident.arrivals} times, not {request.arrivals}",
            )
        idle_ms = resident.idle_s(time.monotonic()) * 1000
        if request.if_idle and resident.state == State.STATE_READY and idle_ms < request.idle_ms:
            raise FleetError(
                common_pb2.REASON_BUSY,
                f"model {request.model} was used {idle_ms:.0f} ms ago, not {request.idle_ms} ms",
            )
        return resident

    async def _run(self, job: LoadJob, spec: common_pb2.ModelSpec, engine_name: str) -> None:
        try:
            async with self._one_at_a_time:
                known = self.residents.get(spec.name)
                if known is not None and known.state == State.STATE_ASLEEP:
                    await self._wake(job, known)
                elif known is None or known.state == State.STATE_FAILED:
                    await self._load(job, spec, engine_name)
            job.ready()
        except FleetError as error:
            self._failed(job, error)
        except asyncio.CancelledError:
            self._failed(job, load_failed("the worker is stopping"))
            raise
        except Exception as error:
            log.exception("load failed in an unforeseen way", model=spec.name)
            self._failed(job, load_failed(f"{type(error).__name__}: {error}"))
        finally:
            del self._jobs[spec.name]
            self._changed()

    async def _load(self, job: LoadJob, spec: common_pb2.ModelSpec, engine_name: str) -> None:
        began = time.monotonic()
        config = self._engine_config(spec, engine_name)
        self.memory.check(spec.name, config.weights_bytes + config.kv_bytes, self._held_bytes)
        self._last_epoch += 1
        resident = Resident(
            spec.name, self._last_epoch, config.engine, config.weights_bytes + config.kv_bytes
        )
        before = self.memory.now()
        self.residents[spec.name] = resident
        self._changed()
        try:
            await self._bring_up(job, resident, spec, config)
        except BaseException:
            if resident.engine is not None:
                await resident.engine.unload()
                resident.engine = None
            self._cache.release(spec.name)
            raise
        resident.occupied_bytes = self.memory.grown(before)
        self._serve(resident)
        freeze_heap()
        log.info(
            "model ready",
            model=spec.name,
            engine=config.engine,
            epoch=resident.epoch,
            seconds=round(time.monotonic() - began, 2),
        )

    async def _wake(self, job: LoadJob, resident: Resident) -> None:
        """A new life: what was cached is gone."""
        began = time.monotonic()
        self.memory.check(resident.name, resident.awake_bytes - resident.held_bytes, self._held_bytes)
        self._last_epoch += 1
        resident.epoch, resident.state, resident.closed = self._last_epoch, State.STATE_LOADING, False
        resident.arrivals = 0
        self._changed()
        job.report(Stage.STAGE_STARTING_ENGINE)
        engine = cast(SleepingEngine, resident.engine)
        try:
            await engine.wake()
            job.report(Stage.STAGE_WARMING_UP)
            await self._dispatcher.canary(resident, self._canary_timeout_s)
        except BaseException:
            await engine.unload()
            resident.engine = None
            raise
        resident.down = False
        self._serve(resident)
        seconds = round(time.monotonic() - began, 2)
        log.info("model woke up", model=resident.name, epoch=resident.epoch, seconds=seconds)

    def _serve(self, resident: Resident) -> None:
        resident.state = State.STATE_READY
        resident.last_used = time.monotonic()

    async def _bring_up(
        self,
        job: LoadJob,
        resident: Resident,
        spec: common_pb2.ModelSpec,
        config: common_pb2.ModelSpec.EngineConfig,
    ) -> None:
        factory = engine_factory(config.engine)
        bundle = await asyncio.to_thread(self._cache.tokenizer, spec, job.report)
        vocabulary = await asyncio.to_thread(load_vocabulary, bundle)
        engine = resident.engine = factory(self._threads)
        engine.steps.observe = self._step_seconds
        weights = None
        if engine.needs_weights:
            fetch = self._cache.folder if engine.needs_folder else self._cache.weights
            weights = await asyncio.to_thread(fetch, spec, job.report)
        job.report(Stage.STAGE_STARTING_ENGINE)
        resident.block_size = spec.block_size or DEFAULT_BLOCK_SIZE
        total_bytes = config.weights_bytes or 1 << 20
        model = ModelFiles(
            name=spec.name,
            context_length=spec.context_length or bundle.context_length,
            block_size=resident.block_size,
            arguments={**_arguments(config), **self._engine_arguments.get(config.engine, {})},
            kv_bytes=config.kv_bytes,
            weights_digest=spec.digest or bundle.digest,
            weights=weights,
            vocabulary=vocabulary,
            progress=lambda part: job.report(
                Stage.STAGE_STARTING_ENGINE, round(part * total_bytes), total_bytes
            ),
        )
        sink = EngineSink(
            resident,
            self._dispatcher,
            self._cache_log,
            self._canary_timeout_s,
            self._changed,
            self._restarted,
        )
        resident.facts = await engine.load(model, sink)
        resident.pieces = Pieces(vocabulary.token_bytes, resident.facts.vocabulary_size)
        resident.warm_id = next(i for i in range(vocabulary.size) if resident.pieces.text_of(i))
        job.report(Stage.STAGE_WARMING_UP)
        await self._dispatcher.canary(resident, self._canary_timeout_s)

    def _failed(self, job: LoadJob, error: FleetError) -> None:
        resident = self.residents.get(job.model)
        if resident is not None:
            resident.state, resident.failure, resident.reserved_bytes = State.STATE_FAILED, error, 0
        log.warning("load failed", model=job.model, reason=error.reason_name, detail=error.message)
        job.failed(error)

    async def _remove(self, resident: Resident) -> int:
        freed = await resident.engine.unload() if resident.engine is not None else 0
        self.residents.pop(resident.name, None)
        resident.engine = resident.pieces = None
        self._cache.release(resident.name)
        self._cache_log.cleared(resident.name)
        log.info("model unloaded", model=resident.name, epoch=resident.epoch, freed_bytes=freed)
        self._changed()
        return freed

    def _engine_config(self, spec: common_pb2.ModelSpec, wanted: str) -> common_pb2.ModelSpec.EngineConfig:
        for config in spec.engines:
            if config.engine == wanted or (not wanted and config.engine in self.engines):
                return config
        offered = ", ".join(config.engine for config in spec.engines) or "none"
        raise load_failed(
            f"model {spec.name}: no engine to run it with. Its entry offers {offered}; "
            f"{f'{wanted} was asked for' if wanted else f'this worker hosts {chr(44).join(self.engines)}'}"
        )


def _arguments(config: common_pb2.ModelSpec.EngineConfig) -> dict[str, object]:
    """Raises FleetError naming the argument that is no JSON."""
    parsed: dict[str, object] = {}
    for name, value in config.arguments.items():
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise load_failed(f"engine {config.engine}: argument {name} is no JSON: {error}") from error
    return parsed


def _unloaded(resident: Resident) -> FleetError:
    return FleetError(common_pb2.REASON_DRAINING, f"model {resident.name} is being unloaded from this worker")
