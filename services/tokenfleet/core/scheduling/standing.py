"""How a replica stands at one moment: all that a choice needs to know of it, in numbers that never change.

A choice and its explanation read the same numbers, the explanation perhaps minutes later: so a replica's
standing is written anew whenever something about it has changed and somebody wants to know, and whoever holds
an earlier one keeps the truth of that moment at the price of a reference.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

from tokenfleet.core.scheduling.model import Replica
from tokenfleet.core.scheduling.speed import Price

UNKNOWN_ZONE = 0


class Standing(NamedTuple):
    """Of one replica. The first four, times 1, prompt, answer and prompt · answer, add up to the cost of a
    prompt of which nothing is cached, where the KV cache has room."""

    fixed_s: float  # of any request; infinite where nothing more may be sent
    per_prompt_token_s: float
    per_answer_token_s: float
    per_pair_s: float  # for each token of the prompt and each of the answer
    step_s: float  # of a step with one more sequence in it, its own context left out
    prefill_token_s: float  # what a prompt token costs to compute
    free_tokens: float  # for which there is KV cache left
    block_size: float  # tokens of a cached block
    zone: float  # as a number
    queue_s: float  # until what waits there is computed
    ahead: float  # answers that must end before one more can begin, as a share of those that run at once
    idle_step_s: float  # of a step with nothing else in it
    late_s: float
    strain_s: float
    replica: Replica
    running: int
    waiting: int  # what was sent there and not yet seen included

    def numbers(self) -> tuple[float, ...]:
        return cast(tuple[float, ...], self[:NUMBERS])


NUMBERS = Standing._fields.index("replica")  # so many of the fields


def standing_of(replica: Replica, price: Price, zone: int) -> Standing:
    """As it is now, if its steps cost that much."""
    waiting = replica.waiting + replica.reserved
    load = replica.running + waiting
    slots = replica.max_sequences
    ahead = (load + 1 - slots) / slots if 0 < slots <= load else 0.0
    prefill_s, context_s = price.per_prefill_token_s, price.per_context_token_s
    alone_s = price.base_s + price.per_sequence_s
    step_s = (
        alone_s
        + price.per_sequence_s * load
        + context_s * (replica.context_tokens + replica.reserved_context_tokens)
    )
    queue_s = prefill_s * (replica.queued_prefill_tokens + replica.reserved_prefill_tokens)
    worker = replica.worker
    late_s, strain_s = worker.late_s, worker.device.strain_s
    return Standing(
        queue_s + step_s + late_s + strain_s if load < replica.capacity else math.inf,
        prefill_s + context_s,
        step_s * (1.0 + ahead),
        context_s * (1.0 + ahead),
        step_s,
        prefill_s,
        _free_tokens(replica),
        replica.block_size,
        zone,
        queue_s,
        ahead,
        alone_s,
        late_s,
        strain_s,
        replica,
        replica.running,
        waiting,
    )


def _free_tokens(replica: Replica) -> float:
    if not replica.kv_blocks_total:
        return math.inf
    # Blocks that only cache are given up on demand, so what counts is what running sequences hold. What
    # they share is held once, which the engine knows, and the lengths of contexts do not show.
    held = replica.kv_blocks_used * replica.block_size or replica.context_tokens
    waiting = replica.queued_prefill_tokens if replica.waiting else 0
    return replica.kv_blocks_total * replica.block_size - held - waiting - replica.reserved_prefill_tokens
