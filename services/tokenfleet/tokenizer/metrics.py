"""The tokenizer's metrics; what happens once a job is a plain number of the event loop's thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenfleet.runtime.metrics import TokenHistogram

_JOBS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class TokenizerMetrics(Collector):
    """Everything under `tokenfleet_tokenizer_`."""

    def __init__(
        self,
        queue_depth: Callable[[], int],
        cache_bytes: Callable[[], int],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self.requests: Counter[str] = Counter()  # by outcome: ok, or the reason's name
        self.tokens = 0
        self.looked_up_tokens = 0
        self.reused_tokens = 0
        self.batches: Counter[str] = Counter()  # by path: inline, thread
        self._queue_depth = queue_depth
        self._cache_bytes = cache_bytes
        self.batch_jobs = TokenHistogram(
            "tokenfleet_tokenizer_batch_jobs", "Jobs encoded together", _JOBS, registry
        )
        self.encode_seconds = TokenHistogram(
            "tokenfleet_tokenizer_encode_seconds", "Time to encode one batch", _SECONDS, registry
        )
        registry.register(self)

    def add(
        self, outcomes: Mapping[str, int], tokens: int, looked_up_tokens: int, reused_tokens: int
    ) -> None:
        for outcome, count in outcomes.items():
            self.requests[outcome] += count
        self.tokens += tokens
        self.looked_up_tokens += looked_up_tokens
        self.reused_tokens += reused_tokens

    def observe(self, path: str, jobs: int, seconds: float) -> None:
        self.batches[path] += 1
        self.batch_jobs.observe(jobs)
        self.encode_seconds.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        prefix = "tokenfleet_tokenizer_"
        requests = CounterMetricFamily(prefix + "requests", "Jobs answered", labels=["outcome"])
        for outcome, count in tuple(self.requests.items()):
            requests.add_metric([outcome], count)
        batches = CounterMetricFamily(prefix + "batches", "Batches by where they ran", labels=["path"])
        for path, count in tuple(self.batches.items()):
            batches.add_metric([path], count)
        cache = CounterMetricFamily(
            prefix + "prefix_cache_tokens", "Prompt tokens looked up in the prefix cache", labels=["result"]
        )
        cache.add_metric(["hit"], self.reused_tokens)
        cache.add_metric(["miss"], self.looked_up_tokens - self.reused_tokens)
        yield from (requests, batches, cache)
        yield CounterMetricFamily(prefix + "tokens", "Tokens encoded", value=self.tokens)
        yield GaugeMetricFamily(prefix + "queue_depth", "Jobs that wait", value=self._queue_depth())
        yield GaugeMetricFamily(
            prefix + "prefix_cache_bytes", "Memory that the prefix caches take", value=self._cache_bytes()
        )
