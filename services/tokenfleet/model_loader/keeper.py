"""Carries out what the residency policy decides: loads on workers, and word to those who wait.

Everything that happens ends in `replan`, which asks the policy what follows. Loads run on the workers and go
on when this process dies: its successor sees them through the watches and joins them.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry

from tokenfleet.core.residency import Demand, Host, HostFacts, Limits, LoadOrder, Residency, UnloadOrder
from tokenfleet.model_loader.flight import Flight
from tokenfleet.model_loader.history import History, ModelHistory
from tokenfleet.model_loader.metrics import ModelLoaderMetrics
from tokenfleet.model_loader.worker_link import WorkerLink
from tokenfleet.runtime.discovery import Peer
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2, model_loader_pb2, worker_pb2

TICK_S = 0.25
Stage = common_pb2.LoadProgress

# What says that the worker went away, and nothing about the load.
_BROKEN_OFF = (common_pb2.REASON_WORKER_LOST, common_pb2.REASON_CANCELLED)

log = get_logger(__name__)


class Keeper:
    """Owns the residency policy, the links to the workers and the loads under way."""

    def __init__(
        self,
        limits: Limits,
        policy: str,
        history: History,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self.residency = Residency(random.random, limits, policy)
        self.specs: dict[str, common_pb2.ModelSpec] = {}
        self._history = history
        self._metrics = ModelLoaderMetrics(self.residency, registry)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._links: dict[str, WorkerLink] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._flights: dict[Demand, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: dict[LoadOrder, common_pb2.LoadProgress] = {}

    def start(self) -> None:
        self._tick()

    def peer_came(self, peer: Peer) -> None:
        """There shall be a worker. One that is not ready counts too: it may be waiting for a load."""
        self.residency.expect(peer.target, self._loop.time())
        link = WorkerLink(peer, described=self._described, used=self._used, lost=self._lost)
        self._links[peer.target] = link
        link.start()

    def peer_changed(self, peer: Peer) -> None:
        self._links[peer.target].update(peer)

    def peer_left(self, target: str) -> None:
        link = self._links.pop(target)
        link.leave()
        stopping = asyncio.create_task(link.stop())
        self._leaving.add(stopping)
        stopping.add_done_callback(self._leaving.discard)
        self.residency.leave(target, self._loop.time())
        self.replan()

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.stop() for link in self._links.values()), *self._leaving)

    # -- what callers ask --------------------------------------------------------------------------

    def spec(self, model: str) -> common_pb2.ModelSpec:
        """Raises FleetError when there is no such entry."""
        spec = self.specs.get(model)
        if spec is None:
            raise FleetError(
                common_pb2.REASON_MODEL_NOT_FOUND,
                f"the model {model!r} is not in the catalog",
                field="model",
            )
        return spec

    def ensure(self, model: str, replicas: int, excluded: frozenset[str]) -> Flight:
        """The flight of a demand, shared with all who want just that, and dropped when all have left."""
        self.spec(model)
        demand = self.residency.want(model, replicas, excluded, self._loop.time())
        flight = self._flights.get(demand)
        if flight is None:
            flight = self._flights[demand] = Flight(model)
            for order, progress in self._loading.items():
                self._tell(demand, flight, order, progress)
        self.replan()
        return flight

    async def unload(
        self, model: str, worker_id: str, force: bool
    ) -> AsyncIterator[model_loader_pb2.UnloadResponse]:
        """Takes the model off one worker or all; each answers for itself."""
        hosts = [
            host
            for host in self.residency.hosts.values()
            if host.connected and model in host.places and worker_id in ("", host.facts.worker_id)
        ]
        if not hosts:
            where = f"worker {worker_id}" if worker_id else "any worker"
            raise FleetError(common_pb2.REASON_NOT_RESIDENT, f"{model} is not on {where}", field="model")
        for host in hosts:
            yield await self._unload(host, model, force)

    def pin(self, model: str, pinned: bool) -> None:
        """An operator's word, which is above the entry's policy."""
        self.residency.pin(model, pinned)
        self.replan()

    def recall(self, model: str, past: ModelHistory) -> None:
        """What a former loader knew of it."""
        if past.last_load_s:
            self.residency.popularity.loaded(model, past.last_load_s)
        if past.pinned is not None:
            self.pin(model, past.pinned)

    def residencies(self, is_added: Callable[[str], bool]) -> list[model_loader_pb2.ModelResidency]:
        """Every entry of the catalog, and where it is."""
        listed = [self._residency(spec) for spec in self.specs.values()]
        for one in listed:
            one.added = is_added(one.spec.name)
        return listed

    def memories(self) -> list[model_loader_pb2.WorkerMemory]:
        """What every worker has for models."""
        return [
            model_loader_pb2.WorkerMemory(
                worker_id=host.facts.worker_id,
                worker_name=host.facts.name,
                zone=host.facts.zone,
                engines=sorted(host.facts.engines),
                budget_bytes=host.facts.memory_budget_bytes,
                taken_bytes=host.taken_bytes,
            )
            for host in self.residency.hosts.values()
            if host.connected
        ]

    # -- what happens ------------------------------------------------------------------------------

    def replan(self) -> None:
        """Asks the policy what follows from what happened, and does it."""
        now = self._loop.time()
        plan = self.residency.plan(now)
        for unload in plan.unloads:
            self._start(self._evict(unload, self._links[unload.target]))
        for load in plan.loads:
            request = worker_pb2.LoadModelRequest(spec=self.specs[load.model], engine=load.engine)
            self._start(self._carry_out(load, self._links[load.target], request))
        for settlement in plan.settlements:
            flight = self._flights.pop(settlement.demand, None)
            if flight is not None:
                flight.settle(settlement)
        for demand, flight in self._flights.items():
            eta_s = demand.ready_at - now
            flight.wait(demand.waits_for, round(eta_s * 1000) if 0 < eta_s < math.inf else 0)

    def _start(self, carrying_out: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(carrying_out)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        for demand, flight in tuple(self._flights.items()):
            if flight.forsaken:
                del self._flights[demand]
                self.residency.forsake(demand)
        self.replan()

    def _described(self, target: str, facts: HostFacts) -> None:
        self.residency.describe(target, facts, self._loop.time())
        self.replan()

    def _lost(self, target: str) -> None:
        self.residency.lost(target, self._loop.time())
        self.replan()

    def _used(self, target: str, sample: worker_pb2.LoadSample) -> None:
        now = self._loop.time()
        for load in sample.models:
            self.residency.used(target, load.model, load.running, load.idle_ms / 1000, load.arrivals, now)
            if load.running and load.model in self.specs:
                self._history.used(load.model, round(time.time() * 1000))
        self.residency.sampled(target, now)

    async def _carry_out(
        self, order: LoadOrder, link: WorkerLink, request: worker_pb2.LoadModelRequest
    ) -> None:
        log.info(
            "load ordered", model=order.model, worker=order.worker_id, engine=order.engine, wake=order.wake
        )
        began = self._loop.time()
        try:
            async for response in link.load(request):
                progress = response.progress
                if progress.stage == Stage.STAGE_READY:
                    self._succeeded(order, response.residency_epoch, self._loop.time() - began)
                    return
                if progress.stage == Stage.STAGE_FAILED:
                    raise FleetError.from_failure(progress.failure)
                self._progressed(order, progress, self._loop.time() - began)
            raise FleetError(common_pb2.REASON_WORKER_LOST, "the worker ended the load without a result")
        except FleetError as error:
            self._failed(order, error)
        finally:
            self._loading.pop(order, None)
        self.replan()

    def _progressed(self, order: LoadOrder, progress: common_pb2.LoadProgress, elapsed_s: float) -> None:
        expected_s = self._history.of(order.model).last_load_s
        if not progress.eta_ms and expected_s > elapsed_s:
            progress.eta_ms = round((expected_s - elapsed_s) * 1000)
        progress.worker_id = order.worker_id
        self._loading[order] = progress
        for demand, flight in self._flights.items():
            self._tell(demand, flight, order, progress)

    def _tell(
        self, demand: Demand, flight: Flight, order: LoadOrder, progress: common_pb2.LoadProgress
    ) -> None:
        if demand.model == order.model and order.worker_id not in demand.excluded:
            flight.report(progress)

    def _succeeded(self, order: LoadOrder, epoch: int, seconds: float) -> None:
        log.info("loaded", model=order.model, worker=order.worker_id, seconds=round(seconds, 2))
        self.residency.loaded(order, epoch, self._loop.time())
        if order.wake:
            self._metrics.loads.labels("awake").inc()
        else:
            self._history.loaded(order.model, seconds)
            self._metrics.loads.labels("ready").inc()
            self._metrics.load_seconds.observe(seconds)
        self.replan()

    def _failed(self, order: LoadOrder, error: FleetError) -> None:
        log.warning(
            "load failed",
            model=order.model,
            worker=order.worker_id,
            reason=error.reason_name,
            error=error.message,
        )
        self._metrics.loads.labels(error.reason_name).inc()
        now = self._loop.time()
        if error.reason in _BROKEN_OFF:
            self.residency.broken_off(order, now)
            return
        self.residency.failed(order, error.reason_name, error.message, now)
        self._history.load_failed(order.model)

    async def _evict(self, order: UnloadOrder, link: WorkerLink) -> None:
        """Carries out an order to let go of a model; the worker refuses where it was used since."""
        told = {"model": order.model, "worker": order.worker_id, "cause": order.cause}
        request = worker_pb2.UnloadModelRequest(
            model=order.model,
            residency_epoch=order.epoch,
            if_idle=True,
            idle_ms=int(order.idle_s * 1000),
            arrivals=order.arrivals,
            sleep=order.sleep,
        )
        try:
            ended = await link.unload(request)
        except FleetError as error:
            log.info("eviction refused", **told, reason=error.reason_name, detail=error.message)
            self.residency.kept(order, self._loop.time())
        else:
            slept = ended.stage == worker_pb2.UnloadModelResponse.STAGE_ASLEEP
            log.info(
                "put to sleep" if slept else "evicted",
                **told,
                wanted_for=order.for_model,
                idle_s=round(order.idle_s, 3),
                freed_bytes=ended.freed_bytes,
            )
            self._told_of_missing(order.worker_id, ended)
            self.residency.unloaded(order)
            self._metrics.evictions.labels("sleep" if slept else order.cause).inc()
        self.replan()

    def _told_of_missing(self, worker_id: str, ended: worker_pb2.UnloadModelResponse) -> None:
        if ended.missing_bytes:
            log.warning("memory did not come back", worker=worker_id, missing_bytes=ended.missing_bytes)

    async def _unload(self, host: Host, model: str, force: bool) -> model_loader_pb2.UnloadResponse:
        worker_id = host.facts.worker_id
        request = worker_pb2.UnloadModelRequest(
            model=model, residency_epoch=host.places[model].epoch, if_idle=not force
        )
        self.residency.withhold(model, worker_id)
        try:
            ended = await self._links[host.target].unload(request)
        except FleetError as error:
            self.residency.unhold(model, worker_id)
            return model_loader_pb2.UnloadResponse(worker_id=worker_id, failure=error.to_failure())
        log.info("unloaded", model=model, worker=worker_id, freed_bytes=ended.freed_bytes)
        self._told_of_missing(worker_id, ended)
        self._metrics.evictions.labels("operator").inc()
        return model_loader_pb2.UnloadResponse(worker_id=worker_id, done=True, freed_bytes=ended.freed_bytes)

    def _residency(self, spec: common_pb2.ModelSpec) -> model_loader_pb2.ModelResidency:
        past = self._history.of(spec.name)
        residency = model_loader_pb2.ModelResidency(
            spec=spec,
            places=[
                model_loader_pb2.ModelResidency.Place(
                    worker_id=host.facts.worker_id,
                    worker_name=host.facts.name,
                    zone=host.facts.zone,
                    residency_epoch=place.epoch,
                    memory_bytes=place.memory_bytes,
                    state=str(place.state),
                    running=use.running if (use := host.uses.get(spec.name)) is not None else 0,
                )
                for host in self.residency.hosts.values()
                if (place := host.places.get(spec.name)) is not None
            ],
            pinned=self.residency.pinned(spec.name),
            last_used_unix_ms=past.last_used_unix_ms,
            loads=past.loads,
            failures=past.failures,
            last_load_ms=round(past.last_load_s * 1000),
        )
        for order, progress in self._loading.items():
            if order.model == spec.name:
                residency.loading.CopyFrom(progress)
        shortage = self.residency.shortages(self._loop.time()).get(spec.name)
        if shortage is not None:
            residency.wants_memory_bytes = shortage.bytes
        self._add_quarantine(residency, spec.name)
        return residency

    def _add_quarantine(self, residency: model_loader_pb2.ModelResidency, model: str) -> None:
        now = self._loop.time()
        for quarantine in self.residency.backoff.lasting(model, now)[:1]:
            residency.quarantine.CopyFrom(
                common_pb2.Failure(
                    reason=common_pb2.Reason.Value(f"REASON_{quarantine.reason.upper()}"),
                    message=quarantine.message,
                    retry_after_ms=round((quarantine.until - now) * 1000),
                )
            )
