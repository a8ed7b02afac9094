"""What both ways of batching are asked, and what is looked at in their answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

SEED = 7


@dataclass(frozen=True, slots=True)
class Asked:
    at: float
    prompt_tokens: int
    answer_tokens: int


@dataclass(slots=True)
class Served:
    """When tokens came, by the number of the request."""

    asked: Sequence[Asked]
    first_at: dict[int, float] = field(default_factory=dict)
    tokens: int = 0
    ended_at: float = 0.0
    padding: float = 0.0  # of all that was computed

    def token(self, key: int, now: float, count: int = 1) -> None:
        self.first_at.setdefault(key, now)
        self.tokens += count
        self.ended_at = now

    def row(self) -> dict[str, float]:
        waits = sorted(self.first_at[key] - one.at for key, one in enumerate(self.asked))
        last = len(waits) - 1
        return {
            "requests": len(waits),
            "tokens_per_s": self.tokens / (self.ended_at - self.asked[0].at),
            **{f"ttft_p{part}_s": waits[min(last, len(waits) * part // 100)] for part in (50, 95, 99)},
            "padding_share": self.padding,
        }


def poisson(
    rate: float, count: int, *, prompt: tuple[float, float, int], answer: float, longest_answer: int
) -> list[Asked]:
    """`prompt`: median, spread (of the logarithm) and the longest. `rate` 0: all at once."""
    chance = random.Random(SEED)
    now, asked = 0.0, []
    median, spread, longest = prompt
    for _ in range(count):
        now += chance.expovariate(rate) if rate else 0.0
        tokens = min(longest, max(4, round(median * chance.lognormvariate(0, spread))))
        asked.append(Asked(now, tokens, min(longest_answer, max(1, round(chance.expovariate(1 / answer))))))
    return asked
