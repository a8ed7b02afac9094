"""The model-loader's metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenfleet.core.residency import PlaceState, Residency

LOAD_BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


class ModelLoaderMetrics(Collector):
    """Everything under `tokenfleet_model_loader_`."""

    def __init__(self, residency: Residency, registry: CollectorRegistry = REGISTRY) -> None:
        self._residency = residency
        self.loads = Counter(
            "tokenfleet_model_loader_loads", "Loads that ended, by how", ["outcome"], registry=registry
        )
        self.load_seconds = Histogram(
            "tokenfleet_model_loader_load_seconds",
            "From the order to ready",
            buckets=LOAD_BUCKETS,
            registry=registry,
        )
        self.evictions = Counter(
            "tokenfleet_model_loader_evictions", "Models let go of, by why", ["cause"], registry=registry
        )
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        places = [
            place for host in tuple(self._residency.hosts.values()) for place in tuple(host.places.values())
        ]
        resident = GaugeMetricFamily(
            "tokenfleet_model_loader_resident_models", "Models on workers, by state", labels=["state"]
        )
        for state in PlaceState:
            resident.add_metric([str(state)], sum(place.state is state for place in places))
        yield resident
        wants = GaugeMetricFamily(
            "tokenfleet_model_loader_wants_memory_bytes",
            "Memory that a wanted model would take, where no worker has it to spare",
            labels=["model", "engine"],
        )
        for model, shortage in self._residency.shortages(time.monotonic()).items():
            wants.add_metric([model, shortage.engine], shortage.bytes)
        yield wants
        connected = sum(host.connected for host in tuple(self._residency.hosts.values()))
        workers = GaugeMetricFamily("tokenfleet_model_loader_workers", "Workers that are followed")
        workers.add_metric([], connected)
        yield workers
