"""The worker as one thing: its identity, its parts, and how it drains."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator

from prometheus_client import REGISTRY, CollectorRegistry

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.links import Link
from tokenfleet.runtime.models import ModelCache
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker import machine
from tokenfleet.worker.cache_log import CacheLog
from tokenfleet.worker.dispatcher import Dispatcher
from tokenfleet.worker.memory import Memory
from tokenfleet.worker.metrics import WorkerMetrics
from tokenfleet.worker.residency import Residency
from tokenfleet.worker.resident import Resident, State
from tokenfleet.worker.session import Session
from tokenfleet.worker.settings import WorkerSettings
from tokenfleet.worker.watch import WatchHub

log = get_logger(__name__)


class WorkerHost:
    """Wires the parts together; everything on the event loop's thread."""

    def __init__(self, settings: WorkerSettings, registry: CollectorRegistry = REGISTRY) -> None:
        self.settings = settings
        self.worker_id = f"{settings.name}-{secrets.token_hex(4)}"
        residents: dict[str, Resident] = {}
        self.dispatcher = Dispatcher(residents, settings.queue_limit)
        self.metrics = WorkerMetrics(self.dispatcher, residents, registry)
        cache = CacheLog(self.dispatcher.changed.notify)
        self.watch = WatchHub(self.describe, residents.values, self.dispatcher.changed, cache)
        self.residency = Residency(
            ModelCache(settings.cache_dir, settings.cache_bytes),
            self.dispatcher,
            residents,
            cache,
            engines=list(settings.engines),
            threads=settings.engine_threads,
            engine_arguments=settings.engine_arguments,
            memory=Memory(
                settings.memory_bytes
                or machine.model_memory_bytes(settings.engines, self.watch.accelerator())
            ),
            canary_timeout_s=settings.canary_timeout_s,
            worker_id=self.worker_id,
            changed=self._models_changed,
            restarted=self.metrics.restarted,
            step_seconds=self.metrics.step_seconds.observe,
        )
        self.sessions: set[Session] = set()
        self.draining = False
        self.readiness_changed = asyncio.Event()

    @property
    def ready(self) -> bool:
        """It can take sequences, or orders to load: not so while its first model is still loading."""
        if self.draining:
            return False
        states = {resident.state for resident in self.residency.residents.values()}
        return State.STATE_READY in states or not self.residency.loading

    def accept(self, link: Link[worker_pb2.ServeResponse]) -> Session:
        """A gateway's new stream."""
        session = Session(
            link,
            self.dispatcher,
            admitted=self.watch.admitted,
            ended=self.sessions.discard,
            coalesce_s=self.settings.coalesce_ms / 1000,
            stuck_s=self.settings.stuck_s,
        )
        self.sessions.add(session)
        session.greet(self.worker_id)
        if self.draining:
            session.announce_draining(0.0)
        return session

    def describe(self) -> worker_pb2.WorkerInfo:
        info = worker_pb2.WorkerInfo(
            worker_id=self.worker_id,
            name=self.settings.name,
            zone=self.settings.zone,
            state=worker_pb2.WORKER_STATE_DRAINING if self.draining else worker_pb2.WORKER_STATE_READY,
            engines=self.settings.engines,
            accelerator=self.watch.accelerator(),
            memory_budget_bytes=self.residency.memory.budget_bytes,
        )
        info.models.extend(resident.describe() for resident in self.residency.residents.values())
        return info

    def refuse_when_draining(self) -> None:
        """Raises FleetError when this worker takes no more orders."""
        if self.draining:
            raise self._is_draining()

    async def drain(self, grace_s: float) -> AsyncIterator[int]:
        """Stops taking sequences; yields how many still run until none does.

        What runs longer than the grace is broken off, so that its gateways continue it elsewhere.
        """
        self._start_draining(grace_s)
        deadline = time.monotonic() + grace_s
        while running := self.dispatcher.running:
            seen = self.dispatcher.changed.version
            yield running
            if not await self.dispatcher.changed.after(seen, max(0.0, deadline - time.monotonic())):
                log.info("grace is over", handed_over=self.dispatcher.running)
                self.dispatcher.fail(self.dispatcher.live(), self._is_draining())

    async def close(self) -> None:
        """The end: gateways are told, engines go."""
        for session in tuple(self.sessions):
            session.close()
        await self.residency.close()

    def _start_draining(self, grace_s: float) -> None:
        if self.draining:
            return
        self.draining = True
        self.dispatcher.refuse_with = self._is_draining()
        self.watch.info_changed()
        self.readiness_changed.set()
        for session in self.sessions:
            session.announce_draining(grace_s)

    def _is_draining(self) -> FleetError:
        return FleetError(common_pb2.REASON_DRAINING, f"worker {self.worker_id} is draining")

    def _models_changed(self) -> None:
        self.watch.info_changed()
        self.readiness_changed.set()
