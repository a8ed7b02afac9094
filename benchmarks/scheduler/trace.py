"""What a fleet's caches are worth on recorded traffic, in Mooncake's format: a JSON object a line,
`timestamp` (ms), `input_length`, `output_length` and `hash_ids`, one for each block of 512 tokens.

The measure is a single cache without bounds that has each prompt the moment it arrives: nothing that splits
the traffic over several workers, and has to compute before it can reuse, does better.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scheduler.arrivals import Arrival
from benchmarks.scheduler.sim_worker import Machine
from benchmarks.scheduler.world import World
from loadtest.driver.stats import percentile
from tokenfleet.core.engine_model import StepTiming

BLOCK_TOKENS = 512
WORKERS = 8
AMPLE_BLOCKS = 1_000_000
PATIENCE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Reuse:
    """Shares of all prompt tokens that were cached, and what became of the requests."""

    hit_share: float
    unlimited_share: float
    completed: float
    ttft_p95_s: float

    @property
    def of_unlimited(self) -> float:
        return self.hit_share / self.unlimited_share


def read_trace(path: Path, most: int | None = None) -> list[Arrival]:
    """Its requests in order of arrival; raises ValueError that names the line which is not one."""
    arrivals = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if most is not None and number > most:
                break
            try:
                arrivals.append(_arrival(json.loads(line)))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: no request of a trace: {error!r}") from error
    return sorted(arrivals, key=lambda arrival: arrival.at)


def unlimited_share(arrivals: Sequence[Arrival]) -> float:
    """Of all prompt tokens, those that one cache for all, of everything so far, would have."""
    seen: set[int] = set()
    hits = 0
    for arrival in arrivals:
        known = 0
        for block in arrival.block_hashes:
            if block not in seen:
                break
            known += 1
        seen.update(arrival.block_hashes)
        hits += _usable(known * BLOCK_TOKENS, arrival)
    return hits / sum(arrival.prompt_tokens for arrival in arrivals)


def fleet_reuse(arrivals: Sequence[Arrival], prefill_tokens_per_s: float, seed: int = 1) -> Reuse:
    """The production scheduler in front of eight modelled engines whose caches never overflow.

    The slower they are, the more often a prompt is computed again elsewhere rather than waited for.
    """
    machines = [
        Machine(
            f"w{number}",
            timing=StepTiming(prefill_tokens_per_s=prefill_tokens_per_s),
            kv_blocks=AMPLE_BLOCKS,
            block_size=BLOCK_TOKENS,
            tells_cache=True,
        )
        for number in range(WORKERS)
    ]
    served = World(machines, "predicted", seed).run(arrivals, limit_s=arrivals[-1].at + PATIENCE_S)
    done = [one for one in served if one.complete]
    hits = sum(one.arrival.prompt_tokens - one.computed_tokens for one in done)
    return Reuse(
        hits / sum(one.arrival.prompt_tokens for one in done),
        unlimited_share(arrivals),
        len(done) / len(served),
        percentile([one.ttft_s for one in done], 95),
    )


def _arrival(line: dict[str, object]) -> Arrival:
    prompt, answer, hashes = line["input_length"], line["output_length"], line["hash_ids"]
    timestamp = line["timestamp"]
    if not (isinstance(prompt, int) and isinstance(answer, int) and isinstance(hashes, list)):
        raise TypeError("input_length and output_length are whole numbers, hash_ids a list")
    if not isinstance(timestamp, int | float) or prompt < 1:
        raise ValueError("timestamp is a number, input_length at least 1")
    full = hashes[: prompt // BLOCK_TOKENS]  # engines cache full blocks only
    return Arrival(timestamp / 1000, prompt, max(1, answer), full, deadline_s=PATIENCE_S)


def _usable(tokens: int, arrival: Arrival) -> int:
    """The last token is computed in any case: it is what the first one of the answer needs."""
    return min(tokens, arrival.prompt_tokens - 1)
