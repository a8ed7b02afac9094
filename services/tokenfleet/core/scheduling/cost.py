"""What a request costs on a replica, in seconds: the formula, for one replica.

A choice among few is a sum of these parts for each of them, and an explanation names them. Among many it is
the same sum made for all at once (`many`), which has to come to the same.
"""

from __future__ import annotations

from typing import NamedTuple

from tokenfleet.core.scheduling.standing import UNKNOWN_ZONE, Standing

# Costs this close are equal: the prediction is not that good.
EQUAL = 1.0 + 1e-6
# Of the TTFT objective, what a turn may be waited for in any case: a prompt that takes longer by itself than
# its objective would otherwise wait for a replica with nothing else to do.
LEAST_WAIT = 0.25

Parts = tuple[float, float, float, float, float, float, float, float, float, float]
# By name, in their order; the first six are waited for before the first token.
PARTS = ("queue", "place", "prompt", "step", "late", "strain", "answer", "recompute", "zone", "others")
BEFORE_FIRST_TOKEN = 6


class Asked(NamedTuple):
    """What a cost depends on besides the replica."""

    prompt: int  # tokens
    answer: float  # that are expected
    zone: int  # the client's
    zone_penalty_s: float
    delay: float  # of others, for each second of computing


def parts_of(standing: Standing, asked: Asked, cached: float) -> Parts:
    """The parts of the cost, where so many tokens of the prompt are cached there."""
    prompt, answer, home, zone_penalty_s, delay = asked
    _, token_s, _, _, step_s, prefill_s, free, _, zone, queue_s, ahead, _, late_s, strain_s, _, _, _ = (
        standing
    )
    step_s += (token_s - prefill_s) * prompt
    prompt_s = prefill_s * (prompt - cached)
    lost = prompt + answer - free - cached
    return (
        queue_s,
        ahead * answer * step_s,
        prompt_s,
        step_s,
        late_s,
        strain_s,
        answer * step_s,
        prefill_s * lost if lost > 0.0 else 0.0,
        zone_penalty_s if home not in (UNKNOWN_ZONE, zone) else 0.0,
        delay * prompt_s,
    )
