"""Those who wait in one lane, fair between tenants by tokens and not by requests.

Deficit round robin: in each round every waiting tenant may have another quantum of tokens served, and what it
does not use up is carried over while it waits. A tenant that sends long prompts gets as many tokens as one
that sends short ones, and a tenant that was idle has saved nothing up. Within a tenant the earliest deadline
goes first.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator
from typing import Generic, TypeVar

from tokenfleet.core.queueing.entry import Entry

Item = TypeVar("Item")

QUANTUM_TOKENS = 512


class FairLane(Generic[Item]):
    """The entries of each tenant, and what each may still have served in this round."""

    def __init__(self) -> None:
        self._tenants: dict[str, list[Entry[Item]]] = {}  # in the order of their turns
        self._credit: dict[str, float] = {}  # tokens

    def __len__(self) -> int:
        return sum(map(len, self._tenants.values()))

    def __iter__(self) -> Iterator[Entry[Item]]:
        """Everybody, in no particular order; entries may be removed while iterating."""
        for entries in tuple(self._tenants.values()):
            yield from tuple(entries)

    def add(self, entry: Entry[Item]) -> None:
        insort(self._tenants.setdefault(entry.tenant, []), entry)
        self._credit.setdefault(entry.tenant, 0.0)

    def remove(self, entry: Entry[Item], *, served: bool) -> None:
        entries = self._tenants[entry.tenant]
        entries.remove(entry)
        if served:
            self._credit[entry.tenant] -= entry.tokens
        if not entries:
            del self._tenants[entry.tenant], self._credit[entry.tenant]

    def serving(self) -> Iterator[Entry[Item]]:
        """In the order of service. What the caller does not serve stays; the next of its tenant is tried."""
        passed: dict[str, int] = {}
        while (tenant := self._turn(passed)) is not None:
            entry = self._tenants[tenant][passed.get(tenant, 0)]
            yield entry
            if entry.waiting:
                passed[tenant] = passed.get(tenant, 0) + 1

    def newest_of_the_greediest(self) -> Entry[Item] | None:
        """The last arrival of the tenant that waits for most tokens: who is shed if somebody has to be."""
        if not self._tenants:
            return None
        greediest = max(self._tenants.values(), key=_tokens)
        return max(greediest, key=lambda entry: entry.number)

    def tokens(self, tenant: str) -> int:
        """What the tenant waits for."""
        return _tokens(self._tenants.get(tenant, []))

    def _turn(self, passed: dict[str, int]) -> str | None:
        """Whose next entry is to be served; begins a round, or several, when nobody has the credit."""
        costs = {
            tenant: entries[passed.get(tenant, 0)].tokens
            for tenant, entries in self._tenants.items()
            if passed.get(tenant, 0) < len(entries)
        }
        if not costs:
            return None
        missing = min(cost - self._credit[tenant] for tenant, cost in costs.items())
        if missing > 0:
            rounds = math.ceil(missing / QUANTUM_TOKENS)
            for tenant in costs:
                self._credit[tenant] += rounds * QUANTUM_TOKENS
        return next(tenant for tenant, cost in costs.items() if cost <= self._credit[tenant])


def _tokens(entries: list[Entry[Item]]) -> int:
    return sum(entry.tokens for entry in entries)
