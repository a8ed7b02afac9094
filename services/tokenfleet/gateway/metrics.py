"""The gateway's metrics; per-token ones are plain numbers of the event loop's thread."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenfleet.runtime.metrics import ITL_BUCKETS, REQUEST_BUCKETS, TTFT_BUCKETS, TokenHistogram


class GatewayMetrics(Collector):
    """Everything under `tokenfleet_gateway_`."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.ttft = TokenHistogram(
            "tokenfleet_gateway_ttft_seconds",
            "From submit to the first token of an attempt",
            TTFT_BUCKETS,
            registry,
        )
        self.inter_token_latency = TokenHistogram(
            "tokenfleet_gateway_inter_token_latency_seconds",
            "Between two deltas of one answer",
            ITL_BUCKETS,
            registry,
        )
        self.request_seconds = TokenHistogram(
            "tokenfleet_gateway_request_seconds", "From request to end of response", REQUEST_BUCKETS, registry
        )
        self.requests: dict[str, int] = {}  # by code
        self.running = 0
        self.migrations = Counter(
            "tokenfleet_gateway_migrations",
            "Attempts that another worker took over",
            ["cause"],
            registry=registry,
        )
        registry.register(self)

    def begun(self) -> None:
        self.running += 1

    def ended(self, code: str, seconds: float) -> None:
        """A request ended with `code`: 200, or a failure's reason."""
        self.running -= 1
        self.requests[code] = self.requests.get(code, 0) + 1
        self.request_seconds.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        tokens = CounterMetricFamily("tokenfleet_gateway_tokens", "Tokens by kind", labels=["kind"])
        tokens.add_metric(["prompt"], self.prompt_tokens)
        tokens.add_metric(["completion"], self.completion_tokens)
        tokens.add_metric(["cached"], self.cached_tokens)
        yield tokens
        requests = CounterMetricFamily("tokenfleet_gateway_requests", "Requests answered", labels=["code"])
        for code, count in tuple(self.requests.items()):
            requests.add_metric([code], count)
        yield requests
        yield GaugeMetricFamily(
            "tokenfleet_gateway_requests_running", "Requests being answered", self.running
        )
