"""The baseline that most routers with an eye for prefixes follow: where a like prompt went before.

A prompt goes to the worker that was sent most of its blocks, if that is much of it and the worker is not far
busier than the least loaded one; otherwise to the least loaded. What a worker really has cached is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenfleet.core.scheduling.choice import Choice
from tokenfleet.core.scheduling.model import Replica
from tokenfleet.core.scheduling.policies import Draw, LeastLoaded
from tokenfleet.core.scheduling.prefix_index import PrefixIndex
from tokenfleet.core.scheduling.request import Request

# Share of a prompt's blocks that must have been sent there before.
LEAST_MATCH = 0.5
# Sequences that a worker may have more than the least loaded one, and times as many.
MORE_SEQUENCES = 8
TIMES_AS_MANY = 1.5


class PrefixApprox(LeastLoaded):
    """Knows where prompts were sent, within a bound."""

    name = "prefix_approx"

    def __init__(self, index_bytes: int) -> None:
        self._index = PrefixIndex(index_bytes)
        self._numbers: dict[Replica, int] = {}
        self._free_numbers: list[int] = []

    def pick(self, request: Request, candidates: Sequence[Replica], draw: Draw) -> tuple[Replica, str]:
        least, why = super().pick(request, candidates, draw)
        known = {self._numbers[replica]: replica for replica in candidates if replica in self._numbers}
        for blocks, holders in reversed(self._index.match(request.block_hashes)):
            if blocks < LEAST_MATCH * len(request.block_hashes):
                break
            holding = [known[number] for number in holders.members if number in known]
            if holding:
                replica = min(holding, key=lambda one: one.load)
                if replica.load <= max(least.load + MORE_SEQUENCES, least.load * TIMES_AS_MANY):
                    return replica, f"was sent {blocks} of {len(request.block_hashes)} blocks before"
                return least, f"{why}; too many run where the prefix is"
        return least, why

    def placed(self, request: Request, choice: Choice) -> None:
        hashes = request.block_hashes
        if hashes:
            self._index.extend(self._number(choice.replica), hashes, self._index.match(hashes))

    def emptied(self, replica: Replica) -> None:
        number = self._numbers.pop(replica, None)
        if number is not None:
            self._index.forget(number)
            self._free_numbers.append(number)

    def _number(self, replica: Replica) -> int:
        number = self._numbers.get(replica)
        if number is None:
            number = self._free_numbers.pop() if self._free_numbers else len(self._numbers)
            self._numbers[replica] = number
        return number
