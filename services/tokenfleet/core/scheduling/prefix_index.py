"""Which replica holds which prefix: one entry a block, whoever holds it.

A block's hash covers everything before it, so a replica that holds a block can use it only because it holds
the whole chain up to there, and neighbouring blocks of a chain are nearly always held by the same replicas.
Two things follow. The depth to which a prompt is known is found by binary search, in about ten look-ups for
512 blocks, however many replicas there are. And the set of holders is one shared object for a whole run of
blocks: an entry is a dictionary slot and an integer.

The index is bounded. It has two generations: entries are written to the young one, which becomes the old one
when it has half of what is allowed, and the old one is dropped. What is asked for in between moves to the
young one, a chain at a time, so this is a least-recently-used order without a list to maintain.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import NamedTuple
from weakref import WeakSet, WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

# What an entry takes at worst, just after the dictionary has grown: its slot, and the hash as an object.
ENTRY_BYTES = 160
HASH_BYTES = 32
# Whether a chain has to move to the young generation is told by every so manieth of its blocks: chains are
# written in one piece, and each look-up in a large index is a cache miss.
RENEWAL_STRIDE = 16
NOBODY = -1


class Holders:
    """A set of replicas, by number; equal sets are nearly always one object."""

    __slots__ = ("__weakref__", "_array", "members")

    def __init__(self, members: tuple[int, ...]) -> None:
        self.members = members
        self._array: NDArray[np.intp] | None = None

    @property
    def array(self) -> NDArray[np.intp]:
        """The members, for vector operations."""
        if self._array is None:
            self._array = np.array(self.members, np.intp)
        return self._array

    def lose(self, member: int) -> None:
        self.members = tuple(other for other in self.members if other != member)
        self._array = None


class Run(NamedTuple):
    """All of `holders` hold the first `blocks` blocks of a prompt; nobody else holds the last of them."""

    blocks: int
    holders: Holders


class PrefixIndex:
    """Hashes of blocks, and the replicas that hold them. Replicas are small numbers, given by the caller."""

    def __init__(self, limit_bytes: int) -> None:
        self._young_limit = max(1, limit_bytes // ENTRY_BYTES // 2)
        self._young: dict[int, Holders] = {}
        self._old: dict[int, Holders] = {}
        self._sets: WeakValueDictionary[tuple[int, ...], Holders] = WeakValueDictionary()
        self._all: WeakSet[Holders] = WeakSet()
        self._nobody = Holders(())

    def __len__(self) -> int:
        """Blocks, those that are known in both generations counted twice."""
        return len(self._young) + len(self._old)

    @property
    def size_bytes(self) -> int:
        """What the index takes up, the sets of holders left out: they are few."""
        return sys.getsizeof(self._young) + sys.getsizeof(self._old) + HASH_BYTES * len(self)

    def match(self, hashes: Sequence[int]) -> list[Run]:
        """Who holds how much of the prompt with these block hashes; the longest run last."""
        if not hashes or not self._at(hashes[0]).members:
            return []
        runs: list[Run] = []
        position, known = 0, self._last(hashes, 0, len(hashes), None) + 1
        while position < known:
            holders = self._at(hashes[position])
            position = self._last(hashes, position, known, holders) + 1
            runs.append(Run(position, holders))
        if self._old and None in map(self._young.get, (*hashes[:known:RENEWAL_STRIDE], hashes[known - 1])):
            self.extend(NOBODY, hashes[:known], runs)
        return runs

    def stored(self, replica: int, hashes: Sequence[int]) -> None:
        """The replica holds these blocks, and all before them in their chain."""
        young, old = self._young, self._old
        alone = self._set_of((replica,))
        if not old and len(young) + len(hashes) < self._young_limit:
            held = list(map(young.setdefault, hashes, repeat(alone)))
        else:
            held = [young.get(block) or old.get(block, self._nobody) for block in hashes]
        start = 0
        while start < len(hashes):
            holders, end = held[start], start + 1
            while end < len(hashes) and held[end] is holders:
                end += 1
            if holders is not alone or old:
                self._write(hashes[start:end], self._with(holders, replica))
            start = end

    def extend(self, replica: int, hashes: Sequence[int], runs: Sequence[Run]) -> None:
        """The same for a prompt that was just matched, at the cost of its runs instead of its blocks."""
        start = 0
        for end, holders in runs:
            self._write(hashes[start:end], self._with(holders, replica))
            start = end
        if start < len(hashes):
            self._write(hashes[start:], self._with(self._nobody, replica))

    def removed(self, replica: int, hashes: Iterable[int]) -> None:
        """The replica no longer holds these blocks."""
        young, old, alone = self._young, self._old, (replica,)
        for block in hashes:
            found = young.pop(block, None)
            holders = found or old.get(block, self._nobody)
            members = holders.members
            if replica not in members:
                if found is not None:
                    young[block] = found
                continue
            if old:
                old.pop(block, None)
            if members != alone:
                young[block] = self._set_of(tuple(member for member in members if member != replica))

    def forget(self, replica: int) -> None:
        """The replica lost everything, or is gone: its number may be used again."""
        everybody = tuple(self._all)
        for holders in everybody:
            if replica in holders.members:
                holders.lose(replica)
        # Sets that have become equal stay apart: that costs a look-up more, and no correctness.
        self._sets = WeakValueDictionary({holders.members: holders for holders in everybody})

    def _at(self, block: int) -> Holders:
        return self._young.get(block) or self._old.get(block, self._nobody)

    def _last(self, hashes: Sequence[int], low: int, high: int, holders: Holders | None) -> int:
        """The last block before `high` that is held by exactly these, or by anybody; that of `low` is."""
        while high - low > 1:
            middle = (low + high) // 2
            found = self._at(hashes[middle])
            if found is holders or (holders is None and found.members):
                low = middle
            else:
                high = middle
        return low

    def _write(self, hashes: Sequence[int], holders: Holders) -> None:
        """Into the young generation, where it hides what the old one may say."""
        while hashes:
            room = self._young_limit - len(self._young)
            self._young.update(dict.fromkeys(hashes[:room], holders))
            hashes = hashes[room:]
            if len(self._young) >= self._young_limit:
                self._old, self._young = self._young, {}

    def _with(self, holders: Holders, replica: int) -> Holders:
        if replica in holders.members or replica == NOBODY:
            return holders
        return self._set_of(tuple(sorted((*holders.members, replica))))

    def _set_of(self, members: tuple[int, ...]) -> Holders:
        known = self._sets.get(members)
        if known is None:
            known = self._sets[members] = Holders(members)
            self._all.add(known)
        return known
