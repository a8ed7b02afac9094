"""What Prometheus sees of a worker. Gauges are read at scrape time, so that tokens cost nothing here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenfleet.runtime.metrics import ITL_BUCKETS, TokenHistogram
from tokenfleet.worker.dispatcher import Dispatcher
from tokenfleet.worker.engines.base import EngineLoad
from tokenfleet.worker.resident import Resident


class WorkerMetrics(Collector):
    def __init__(
        self,
        dispatcher: Dispatcher,
        residents: Mapping[str, Resident],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._dispatcher = dispatcher
        self._residents = residents
        self.step_seconds = TokenHistogram(
            "tokenfleet_worker_step_seconds", "Time an engine step took", ITL_BUCKETS, registry
        )
        self.engine_restarts = Counter(
            "tokenfleet_worker_engine_restarts_total", "Engines that died", ["cause"], registry=registry
        )
        registry.register(self)

    def restarted(self, cause: str) -> None:
        self.engine_restarts.labels(cause).inc()

    def collect(self) -> Iterable[Metric]:
        residents = [one for one in tuple(self._residents.values()) if one.facts is not None]
        loads = {one.name: _load(one) for one in residents}
        yield _gauge(
            "requests_running", "Sequences the engine runs", {k: v.running for k, v in loads.items()}
        )
        yield _gauge("requests_waiting", "Sequences waiting in it", {k: v.waiting for k, v in loads.items()})
        usage = {one.name: _usage(one, loads[one.name]) for one in residents}
        yield _gauge("kv_cache_usage_ratio", "Part of the KV blocks held by running sequences", usage)
        memory = {one.name: float(one.describe().memory_bytes) for one in residents}
        yield _gauge("memory_bytes", "Memory of the engine: weights and KV", memory)
        tokens = CounterMetricFamily("tokenfleet_worker_tokens", "Tokens generated")
        tokens.add_metric([], self._dispatcher.tokens)
        yield tokens
        outcomes = CounterMetricFamily(
            "tokenfleet_worker_requests", "Sequences by how they ended", labels=["outcome"]
        )
        for outcome, count in tuple(self._dispatcher.outcomes.items()):
            outcomes.add_metric([outcome], count)
        yield outcomes


def _gauge(name: str, documentation: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"tokenfleet_worker_{name}", documentation, labels=["model"])
    for model, value in values.items():
        family.add_metric([model], value)
    return family


def _load(resident: Resident) -> EngineLoad:
    return resident.engine.load_now() if resident.engine is not None else EngineLoad()


def _usage(resident: Resident, load: EngineLoad) -> float:
    total = resident.facts.kv_blocks_total if resident.facts is not None else 0
    return load.kv_blocks_used / total if total else 0.0
