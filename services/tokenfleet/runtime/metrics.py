"""Metrics whose cost fits a token's budget.

`prometheus_client` takes a lock and a dictionary look-up for each observation, about a microsecond, which
is too much for what happens once a token. `TokenHistogram` is owned by one event loop: an observation is a
bisect and an addition, and the exposition reads the plain lists at scrape time. Everything rarer uses
`prometheus_client` itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenfleet.runtime.settings import split_address

# Seconds; from one decode step to a long answer.
TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_BUCKETS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class TokenHistogram(Collector):
    """A histogram for one thread, without labels, at a fifth of the usual cost."""

    def __init__(
        self,
        name: str,
        documentation: str,
        buckets: Sequence[float],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterable[Metric]:
        cumulative = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            cumulative += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), cumulative))
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric([], buckets, self._sum)
        yield family


def serve_metrics(listen: str, registry: CollectorRegistry = REGISTRY) -> int:
    """Serves the registry for Prometheus on its own thread; answers the port taken."""
    host, port = split_address(listen)
    server, _ = start_http_server(port, host, registry)
    return int(server.server_port)
