"""How often models are asked for, and what it costs when one is not there.

Arrivals are counted with a memory that fades, so that a count orders models by frequency while they are
asked for, and by recency once they no longer are. Its product with what a load takes is the price of an
eviction: the seconds that requests are expected to wait because of it, for each second that it is gone.
"""

from __future__ import annotations

import math

# For how long an arrival counts.
FADE_S = 900.0
# Before a model was ever loaded: so long, and so much faster than this no node reads its weights.
FIRST_LOAD_S = 2.0
BYTES_PER_S = 1e9


class Popularity:
    """Fading counts of arrivals, and how long loads took, by model."""

    def __init__(self, fade_s: float = FADE_S) -> None:
        self._fade_s = fade_s
        self._counts: dict[str, tuple[float, float]] = {}  # count, and when it was brought up to date
        self._load_s: dict[str, float] = {}

    def came(self, model: str, arrivals: float, now: float) -> None:
        self._counts[model] = self._count(model, now) + arrivals, now

    def rate(self, model: str, now: float) -> float:
        """Arrivals a second."""
        return self._count(model, now) / self._fade_s

    def loaded(self, model: str, seconds: float) -> None:
        """How long it took; a first figure that is remembered from elsewhere may come late."""
        self._load_s[model] = seconds

    def load_s(self, model: str, memory_bytes: float) -> float:
        """What a load takes: as long as the last one, or by its size."""
        return self._load_s.get(model) or FIRST_LOAD_S + memory_bytes / BYTES_PER_S

    def price(self, model: str, absent_s: float, now: float) -> float:
        """What its requests are expected to wait, a second, if it takes that long to have it back.

        The first that comes waits for all of it; those who come meanwhile, for half of it on average.
        """
        rate = self.rate(model, now)
        return rate * absent_s * (1 + rate * absent_s / 2)

    def _count(self, model: str, now: float) -> float:
        count, at = self._counts.get(model, (0.0, now))
        return count * math.exp((at - now) / self._fade_s)
