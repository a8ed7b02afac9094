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
        self.fallbacks = Counter(
            "tokenfleet_gateway_fallbacks",
            "Requests that another model took over, by why theirs could not be had",
            ["reason"],
            registry=registry,
        )
        self._router_asks: dict[str, int] = {}  # by the router's address
        self._reasks: dict[str, int] = {}  # by cause
        registry.register(self)

    def asked(self, router: str) -> None:
        self._router_asks[router] = self._router_asks.get(router, 0) + 1

    def reasked(self, cause: str) -> None:
        """A router went ("lost"), or another is the model's home now ("moved")."""
        self._reasks[cause] = self._reasks.get(cause, 0) + 1

    def router_left(self, router: str) -> None:
        """For good: addresses come and go with pods, and labels must not pile up."""
        self._router_asks.pop(router, None)

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
        asks = CounterMetricFamily(
            "tokenfleet_gateway_router_asks", "Placements asked of each router", labels=["router"]
        )
        for router, count in tuple(self._router_asks.items()):
            asks.add_metric([router], count)
        yield asks
        reasks = CounterMetricFamily(
            "tokenfleet_gateway_router_reasks", "Placements asked of another router", labels=["cause"]
        )
        for cause, count in tuple(self._reasks.items()):
            reasks.add_metric([cause], count)
        yield reasks
        yield GaugeMetricFamily(
            "tokenfleet_gateway_requests_running", "Requests being answered", self.running
        )
