"""Around the scheduler: its clock, its randomness, the catalog, and who gets which answer.

Everything runs on the event loop's thread in plain calls; each event ends with `flush`, so that all decisions
that it caused leave in one message per gateway.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Iterable

from prometheus_client import REGISTRY, CollectorRegistry

from tokenfleet.core.scheduling import (
    Candidate,
    ColdCost,
    Decision,
    Forecast,
    LoadWish,
    Outcome,
    Placed,
    Refused,
    Replica,
    Reservation,
    Scheduler,
    make_policy,
)
from tokenfleet.router.ask import Ask
from tokenfleet.router.metrics import RouterMetrics
from tokenfleet.router.records import DecisionRecords, Record
from tokenfleet.router.session import Session
from tokenfleet.router.settings import RouterSettings
from tokenfleet.router.translate import fingerprint, lane, outcome, outcome_name
from tokenfleet.router.worker_watch import WorkerWatch
from tokenfleet.runtime.catalog import CatalogWatch
from tokenfleet.runtime.errors import FleetError, reason_name
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import router_pb2

TICK_S = 0.05
NOTHING: frozenset[str] = frozenset()
FINISHED = router_pb2.Release.OUTCOME_FINISHED

log = get_logger(__name__)


class Dispatcher:
    """Owns the scheduler; sessions, worker watches and loads tell it what happens."""

    def __init__(
        self,
        settings: RouterSettings,
        catalog: CatalogWatch,
        start_load: Callable[[LoadWish], None],
        stop_load: Callable[[LoadWish], None],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._catalog = catalog
        self._random = random.Random(settings.seed)
        self.scheduler: Scheduler[Ask] = Scheduler(
            make_policy(settings.policy, settings.prediction(), settings.by_model()),
            settings.limits(),
            draw=self._random.random,
            decide=self._decided,
            start_load=start_load,
            stop_load=stop_load,
            reservation_prefix=f"{secrets.token_hex(4)}-",
        )
        self.metrics = RouterMetrics(self.scheduler, registry)
        self.records = DecisionRecords(settings.explain_records, self.scheduler.policy.name_for)
        self._objectives = settings.objectives()
        self._log_ratio = settings.decision_log_ratio
        self.watches: dict[str, WorkerWatch] = {}
        self.sessions: set[Session] = set()
        self._touched: list[Session] = []
        self._asking: Ask | None = None  # the one being decided at this moment
        self._engines: dict[str, frozenset[str]] = {}
        self._timer: asyncio.TimerHandle | None = None
        catalog.on_change.append(self._catalog_changed)

    def start(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def stop(self) -> None:
        """Closes all streams: the gateways ask what was queued of another router."""
        if self._timer is not None:
            self._timer.cancel()
        for session in tuple(self.sessions):
            session.close()

    def watch(self, watch: WorkerWatch) -> None:
        """There shall be a worker."""
        self.watches[watch.target] = watch
        self.scheduler.fleet.expect(watch.target, self._loop.time())
        self.scheduler.sampled_every(watch.target, watch.interval_ms / 1000)

    def unwatch(self, target: str) -> WorkerWatch:
        """There is no such worker any more: it is out of the choice at once."""
        watch = self.watches.pop(target)
        self.scheduler.fleet.leave(target, self._loop.time())
        return watch

    # -- gateways ----------------------------------------------------------------------------------

    def ask(self, session: Session, ask: router_pb2.Ask) -> None:
        received_at = time.perf_counter()
        engines = self._engines.get(ask.model)
        if engines is None and not self.scheduler.fleet.placeable(ask.model):
            self._unknown(session, ask)
            return
        now = self._loop.time()
        context = ask.context
        priority = context.priority
        excluded, features = ask.excluded_workers, ask.required_features
        request = self._asking = Ask(
            request_id=context.request_id,
            model=ask.model,
            lane=lane(priority, ask.attempt),
            asked_at=now,
            deadline=now + (context.deadline_ms / 1000 or self._settings.default_deadline_s),
            attempt=ask.attempt,
            zone=context.client_zone,
            engines=engines or NOTHING,
            excluded=frozenset(excluded) if excluded else NOTHING,
            features=frozenset(features) if features else NOTHING,
            preferred=fingerprint(ask.preferred) if ask.HasField("preferred") else None,
            session=session,
            ask_id=ask.ask_id,
            tenant=context.tenant,
            prompt_tokens=ask.prompt_tokens,
            max_tokens=ask.max_tokens,
            block_hashes=ask.block_hashes[:],
            ttft_objective_s=self._objectives.ttft_s(priority, ask.ttft_objective_s),
            itl_objective_s=self._objectives.itl_s(priority, ask.itl_objective_s),
            received_at=received_at,
        )
        self.scheduler.ask(request, now)
        self._asking = None

    def cancel(self, ask: Ask) -> None:
        self.scheduler.cancel(ask)

    def release(self, ask: Ask, placed: Placed, record: Record | None, told: router_pb2.Release) -> None:
        """A placed request ended, and this is what came of it."""
        ending, metrics, scheduler = told.outcome, self.metrics, self.scheduler
        scheduler.release(placed.reservation, outcome(ending), self._loop.time())
        metrics.prefix_hit_tokens += told.cached_tokens
        metrics.ended(outcome_name(ending))
        if ending == FINISHED:
            scheduler.policy.answered(ask, told.completion_tokens)
        ttft_s = told.ttft_s
        if ttft_s and placed.forecast is not None:
            metrics.prediction_error.observe(abs(ttft_s - placed.forecast.ttft_s))
        if record is not None:
            record.actual = told.SerializeToString()

    def closed(self, session: Session, waiting: Iterable[Ask], placed: Iterable[Reservation]) -> None:
        """A gateway's stream ended: what it asked and held is given back."""
        self.sessions.discard(session)
        for ask in waiting:
            self.scheduler.cancel(ask)
        now = self._loop.time()
        for reservation in placed:
            self.scheduler.release(reservation, Outcome.ENDED, now)
        self.flush()

    def placement(self, replica: Replica) -> router_pb2.Placement:
        return self.watches[replica.worker.target].placements[replica.model]

    def touched(self, session: Session) -> None:
        self._touched.append(session)

    def flush(self) -> None:
        touched, self._touched = self._touched, []
        for session in touched:
            session.flush()

    # -- inside ------------------------------------------------------------------------------------

    def _decided(self, ask: Ask, decision: Decision) -> None:
        record = self._conclude(ask, decision) if isinstance(decision, (Placed, Refused)) else None
        ask.session.decide(ask, decision, record)

    def _conclude(self, ask: Ask, decision: Placed | Refused) -> Record | None:
        took_s = 0.0
        metrics = self.metrics
        if ask is self._asking:
            took_s = time.perf_counter() - ask.received_at
            metrics.decision_seconds.observe(took_s)
        if isinstance(decision, Placed):
            metrics.decided(ask.model, "placed")
            metrics.queue_wait.observe(decision.waited_s)
            metrics.prompt_tokens += ask.prompt_tokens
        else:
            metrics.decided(ask.model, decision.reason)
        if self._random.random() < self._log_ratio:
            self._log(ask, decision)
        ask.block_hashes = ()  # a long prompt's would be most of its record
        return self.records.add(ask, decision, took_s)

    def _log(self, ask: Ask, decision: Placed | Refused) -> None:
        seen = decision.scene.candidates(ask.excluded, ask.features)
        placed = decision if isinstance(decision, Placed) else None
        refused = decision if isinstance(decision, Refused) else None
        log.info(
            "decision",
            request_id=ask.request_id,
            tenant=ask.tenant,
            model=ask.model,
            attempt=ask.attempt,
            policy=self.scheduler.policy.name_for(ask.model),
            worker=placed.reservation.replica.worker.id if placed else None,
            reason=refused.reason if refused else "placed",
            why=placed.why if placed else refused and refused.message,
            waited_s=round(decision.waited_s, 4),
            candidates=[_told(candidate) for candidate in seen],
        )

    def _unknown(self, session: Session, ask: router_pb2.Ask) -> None:
        try:
            self._catalog.get(ask.model)
        except FleetError as error:
            self.metrics.decided(ask.model, reason_name(error.reason))
            session.fail(ask.ask_id, error.to_failure())

    def _catalog_changed(self) -> None:
        self._engines = {
            name: frozenset(config.engine for config in spec.engines)
            for name, spec in self._catalog.models.items()
        }

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self.scheduler.tick(self._loop.time())
        self.flush()


def _told(candidate: Candidate) -> dict[str, object]:
    """A candidate as the log has it."""
    told = candidate._asdict()
    forecast: Forecast | None = told.pop("forecast")
    cold: ColdCost | None = told.pop("cold")
    if cold is not None:
        told |= {"load_s": round(cold.load_s, 4), "cost_s": round(cold.cost_s, 4)}
    if forecast is not None:
        told |= {
            "ttft_s": round(forecast.ttft_s, 4),
            "cost_s": round(forecast.cost_s, 4),
            "cached_tokens": forecast.cached_tokens,
        }
    return told
