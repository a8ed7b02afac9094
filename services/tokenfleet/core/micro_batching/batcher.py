"""Who goes into the next batch, and when.

A batch goes when it is full, or when its oldest request has waited for the window, whichever is first. Time
that a request waited while the engine was busy counts, so after a long batch the next one goes at once.

The oldest request is in every batch: so nobody starves, whatever its length, and a request waits for no more
batches than there were requests before it. Company is chosen by length among those that have waited longest:
as many as fit, and of those the ones that need the least padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import NamedTuple

# Company is looked for among so many batches' worth of the longest waiting: the rest cannot overtake them,
# and a choice costs the same however many wait.
LOOKAHEAD_BATCHES = 4
# Padding of so many tokens costs less than anything that could be done about it.
FREE_PADDING = 64


class QueueFull(Exception):
    """So many wait that one more would not be served in any useful time."""


class _Request(NamedTuple):
    tokens: int
    budget: int  # tokens it may generate
    key: int
    arrived_at: float


class MicroBatcher:
    """Requests by key, in order of arrival, until they are taken or removed."""

    def __init__(
        self,
        *,
        window_s: float,
        max_batch: int,
        capacity_tokens: int,
        max_padding: float = 1.0,
        queue_limit: int = 0,
    ) -> None:
        """`capacity_tokens`: what the cache of a batch holds, padding included, when its last answer ends.

        `max_padding`: the part of a prompt's row that may be padding. Less makes smaller batches, which pays
        only where prompts cost much more than answers. `queue_limit` 0: no limit.
        """
        if window_s < 0 or max_batch < 1 or capacity_tokens < 1 or not 0 <= max_padding <= 1:
            raise ValueError(
                f"window_s {window_s}, max_batch {max_batch}, capacity_tokens {capacity_tokens} and "
                f"max_padding {max_padding} make no batches"
            )
        self.window_s = window_s
        self.max_batch = max_batch
        self._capacity = capacity_tokens
        self._max_padding = max_padding
        self._queue_limit = queue_limit
        self._waiting: dict[int, _Request] = {}
        self.tokens = 0  # of the prompts that wait

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[int]:
        """Keys, in order of arrival."""
        return iter(self._waiting)

    def add(self, now: float, key: int, tokens: int, budget: int) -> None:
        """Raises QueueFull, and ValueError for what could never run."""
        if tokens < 1 or budget < 1 or tokens + budget > self._capacity:
            raise ValueError(
                f"request {key} of {tokens} tokens and a budget of {budget} does not fit into a cache of "
                f"{self._capacity} tokens"
            )
        if self._queue_limit and len(self._waiting) >= self._queue_limit:
            raise QueueFull(f"{len(self._waiting)} requests wait already")
        self._waiting[key] = _Request(tokens, budget, key, now)
        self.tokens += tokens

    def remove(self, key: int) -> bool:
        """Forgets a request that waits; False when it does not (any more)."""
        request = self._waiting.pop(key, None)
        if request is None:
            return False
        self.tokens -= request.tokens
        return True

    def due_at(self) -> float | None:
        """When an idle engine shall take the next batch; None while nobody waits."""
        if not self._waiting:
            return None
        oldest = next(iter(self._waiting.values()))
        window_ends = oldest.arrived_at + self.window_s
        if len(self._waiting) < self.max_batch:
            return window_ends
        full_since = next(islice(self._waiting.values(), self.max_batch - 1, None)).arrived_at
        return min(window_ends, full_since)

    def take(self, now: float) -> list[int]:
        """The keys of the next batch, shortest first, which wait no longer; empty when none is due."""
        due = self.due_at()
        if due is None or due > now:
            return []
        horizon = list(islice(self._waiting.values(), LOOKAHEAD_BATCHES * self.max_batch))
        batch = [request.key for request in self._choose(horizon)]
        for key in batch:
            self.remove(key)
        return batch

    def _choose(self, waiting: Sequence[_Request]) -> Sequence[_Request]:
        """Of all runs of neighbours by length around the oldest: the longest that fits, then the tightest."""
        by_length = sorted(waiting)
        at = by_length.index(waiting[0])
        lengths = [0, *accumulate(request.tokens for request in by_length)]
        for size in range(min(self.max_batch, len(by_length)), 1, -1):
            runs = range(max(0, at - size + 1), min(at, len(by_length) - size) + 1)
            fitting = [
                (size * by_length[start + size - 1].tokens - (lengths[start + size] - lengths[start]), start)
                for start in runs
                if self._fits(by_length[start : start + size])
            ]
            if fitting:
                _, start = min(fitting)
                return by_length[start : start + size]
        return waiting[:1]

    def _fits(self, batch: Sequence[_Request]) -> bool:
        shortest, longest = batch[0].tokens, batch[-1].tokens
        if longest - shortest > max(FREE_PADDING, self._max_padding * longest):
            return False
        return len(batch) * (longest + max(request.budget for request in batch)) <= self._capacity
