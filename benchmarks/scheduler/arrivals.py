"""What a fleet is asked: open-loop arrivals, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tokenfleet.core.queueing import Lane

BLOCK_SIZE = 16  # tokens


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. The hashes name the full blocks of its prompt."""

    at: float
    prompt_tokens: int
    answer_tokens: int
    block_hashes: Sequence[int] = field(repr=False)
    tenant: str = "t"
    zone: str = ""
    lane: Lane = Lane.STANDARD
    deadline_s: float = 60.0


class Drawn:
    """Prompts and times from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def times(self, rate: float, seconds: float) -> Iterator[float]:
        """A Poisson process: so many a second."""
        now = self.random.expovariate(rate)
        while now < seconds:
            yield now
            now += self.random.expovariate(rate)

    def blocks(self, tokens: int) -> list[int]:
        return [self.random.getrandbits(64) for _ in range(tokens // BLOCK_SIZE)]

    def length(self, median: float, spread: float, most: int) -> int:
        """Log-normal, as prompts and answers are."""
        return max(8, min(most, round(median * self.random.lognormvariate(0.0, spread))))


def own_prompts(
    rate: float,
    seconds: float,
    seed: int,
    *,
    prompt_tokens: int = 512,
    answer_tokens: int = 96,
    zone: str = "",
) -> list[Arrival]:
    """Nothing in common: only load matters."""
    drawn = Drawn(seed)
    arrivals = []
    for at in drawn.times(rate, seconds):
        prompt = drawn.length(prompt_tokens, 0.6, 8 * prompt_tokens)
        answer = drawn.length(answer_tokens, 0.6, 6 * answer_tokens)
        arrivals.append(Arrival(at, prompt, answer, drawn.blocks(prompt), zone=zone))
    return arrivals


def shared_prompt(rate: float, seconds: float, seed: int, share: float = 0.8) -> list[Arrival]:
    """That share of all requests begins with one system prompt of 4,096 tokens."""
    drawn = Drawn(seed)
    common = drawn.blocks(4096)
    arrivals = []
    for at in drawn.times(rate, seconds):
        shares = drawn.random.random() < share
        own = drawn.length(256, 0.6, 2048)
        answer = drawn.length(96, 0.6, 512)
        hashes = (common if shares else []) + drawn.blocks(own)
        arrivals.append(Arrival(at, own + 4096 * shares, answer, hashes))
    return arrivals


def conversations(rate: float, seconds: float, seed: int) -> list[Arrival]:
    """Turns of many conversations, `rate` a second in all; each turn's prompt is all that was said before.

    One of 32 system prompts, some far more popular than others, begins each of them.
    """
    drawn = Drawn(seed)
    systems = [drawn.blocks(drawn.length(768, 0.5, 3072)) for _ in range(32)]
    popularity = [1 / (rank + 1) for rank in range(32)]
    arrivals: list[Arrival] = []
    turns_mean = 5.0
    warm = 60.0  # conversations that began before the window are in it, too
    for start in drawn.times(rate / turns_mean, seconds + warm):
        at, tenant = start - warm, f"t{drawn.random.randrange(16)}"
        history = list(drawn.random.choices(systems, popularity)[0])
        while True:
            history += drawn.blocks(drawn.length(192, 0.9, 4096) + BLOCK_SIZE)
            answer = drawn.length(128, 0.7, 1024)
            if 0.0 <= at < seconds:
                tokens = len(history) * BLOCK_SIZE + 7
                arrivals.append(Arrival(at, tokens, answer, tuple(history), tenant))
            history += drawn.blocks(answer)
            at += 2.0 + 0.02 * answer + drawn.random.expovariate(1 / 8.0)
            if drawn.random.random() < 1 / turns_mean or at >= seconds or len(history) > 1024:
                break
    return sorted(arrivals, key=lambda arrival: arrival.at)
