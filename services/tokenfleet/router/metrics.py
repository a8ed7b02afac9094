"""The router's metrics: plain numbers of the event loop's thread, read when they are scraped."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenfleet.core.queueing import Lane
from tokenfleet.core.scheduling import Scheduler
from tokenfleet.router.ask import Ask
from tokenfleet.runtime.metrics import TTFT_BUCKETS, TokenHistogram

WAIT_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
DECISION_BUCKETS = (10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 5e-3, 10e-3)


class RouterMetrics(Collector):
    """Everything under `tokenfleet_router_`."""

    def __init__(self, scheduler: Scheduler[Ask], registry: CollectorRegistry = REGISTRY) -> None:
        self._scheduler = scheduler
        self.decisions: dict[tuple[str, str], int] = {}  # by policy and reason
        self.outcomes: dict[str, int] = {}  # of placed requests, as the gateways told them
        self.prompt_tokens = 0
        self.prefix_hit_tokens = 0
        self.queue_wait = TokenHistogram(
            "tokenfleet_router_queue_wait_seconds", "From ask to placement", WAIT_BUCKETS, registry
        )
        self.decision_seconds = TokenHistogram(
            "tokenfleet_router_decision_seconds",
            "Work on an ask that did not wait",
            DECISION_BUCKETS,
            registry,
        )
        self.prediction_error = TokenHistogram(
            "tokenfleet_router_prediction_error_seconds",
            "Between the predicted time to the first token and the one that the gateway measured",
            TTFT_BUCKETS,
            registry,
        )
        registry.register(self)

    def decided(self, model: str, reason: str) -> None:
        key = self._scheduler.policy.name_for(model), reason
        self.decisions[key] = self.decisions.get(key, 0) + 1

    def ended(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def collect(self) -> Iterable[Metric]:
        yield from self._counters()
        depth = GaugeMetricFamily("tokenfleet_router_queue_depth", "Requests waiting", labels=["class"])
        by_class: dict[str, int] = {}
        for lane, waiting in self._scheduler.depths().items():
            by_class[lane.priority_class] = by_class.get(lane.priority_class, 0) + waiting
        for name in dict.fromkeys(lane.priority_class for lane in Lane):
            depth.add_metric([name], by_class[name])
        yield depth
        workers = tuple(self._scheduler.fleet.workers.values())
        count = GaugeMetricFamily(
            "tokenfleet_router_workers", "Workers by what they can do", labels=["state"]
        )
        ready = sum(not worker.veto for worker in workers)
        connected = sum(worker.connected for worker in workers)
        for state, number in (
            ("ready", ready),
            ("not_ready", connected - ready),
            ("unreachable", len(workers) - connected),
        ):
            count.add_metric([state], number)
        yield count
        reserved = GaugeMetricFamily(
            "tokenfleet_router_reservations", "Requests sent to workers and not yet in their load samples"
        )
        reserved.add_metric([], len(self._scheduler.reservations))
        yield reserved

    def _counters(self) -> Iterable[Metric]:
        decisions = CounterMetricFamily(
            "tokenfleet_router_decisions", "Final decisions", labels=["policy", "reason"]
        )
        shed = CounterMetricFamily(
            "tokenfleet_router_requests_shed", "Requests that got no worker", labels=["reason"]
        )
        refused: dict[str, int] = {}
        for (policy, reason), number in tuple(self.decisions.items()):
            decisions.add_metric([policy, reason], number)
            if reason != "placed":
                refused[reason] = refused.get(reason, 0) + number
        for reason, number in refused.items():
            shed.add_metric([reason], number)
        yield decisions
        yield shed
        outcomes = CounterMetricFamily(
            "tokenfleet_router_outcomes", "How placed requests ended", labels=["outcome"]
        )
        for outcome, number in tuple(self.outcomes.items()):
            outcomes.add_metric([outcome], number)
        yield outcomes
        for name, documentation, value in (
            ("prompt_tokens", "Tokens of placed prompts", self.prompt_tokens),
            ("prefix_hit_tokens", "Prompt tokens that workers had cached", self.prefix_hit_tokens),
        ):
            counter = CounterMetricFamily(f"tokenfleet_router_{name}", documentation)
            counter.add_metric([], value)
            yield counter
