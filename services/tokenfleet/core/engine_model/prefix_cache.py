"""Which KV blocks are held by running sequences, which are kept for later ones, and which go first.

Blocks of prompts are named by their chained hashes and shared; what a sequence generates is its own. A block
that nobody holds stays until room is needed, the longest unused going first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol


class Listener(Protocol):
    """Hears which named blocks come and go."""

    def cache_stored(self, hashes: Sequence[int], parent: int) -> None:
        """A chain of blocks; `parent` is the one before the first, 0 at the root."""

    def cache_removed(self, hashes: Sequence[int]) -> None: ...


class PrefixCache:
    """Counts blocks; `capacity` is the engine's whole KV cache."""

    def __init__(self, capacity: int, block_size: int, listener: Listener | None = None) -> None:
        if capacity < 1 or block_size < 1:
            raise ValueError(f"capacity and block_size must be positive, got {capacity} and {block_size}")
        self.capacity = capacity
        self.block_size = block_size
        self._holders: dict[int, int] = {}  # sequences that hold a named block
        self._idle: OrderedDict[int, None] = OrderedDict()  # named, held by nobody; oldest first
        self._unnamed = 0
        self._listener = listener

    @property
    def used(self) -> int:
        """Blocks held by running sequences."""
        return len(self._holders) + self._unnamed

    def reserve(self, hashes: Sequence[int], blocks: int) -> int | None:
        """Holds `blocks` blocks, the first of them named by `hashes`; answers how many were there already.

        None, and nothing held, when there is no room.
        """
        matched, idle = self._match(hashes)
        if self.used + blocks - (matched - idle) > self.capacity:
            return None
        for name in hashes:
            self._idle.pop(name, None)
            self._holders[name] = self._holders.get(name, 0) + 1
        self._unnamed += blocks - len(hashes)
        evicted = self._make_room()
        if self._listener is not None:
            if evicted:
                self._listener.cache_removed(evicted)
            if matched < len(hashes):
                self._listener.cache_stored(hashes[matched:], hashes[matched - 1] if matched else 0)
        return matched

    def release(self, hashes: Sequence[int], blocks: int) -> None:
        """Undoes a `reserve`; named blocks stay for later, the ends of prompts going before their starts."""
        self._unnamed -= blocks - len(hashes)
        for name in reversed(hashes):
            if self._holders[name] > 1:
                self._holders[name] -= 1
            else:
                del self._holders[name]
                self._idle[name] = None

    def _make_room(self) -> list[int]:
        """Drops what nobody holds until the rest fits; answers what was dropped."""
        evicted = []
        while self.used + len(self._idle) > self.capacity:
            evicted.append(self._idle.popitem(last=False)[0])
        return evicted

    def _match(self, hashes: Sequence[int]) -> tuple[int, int]:
        """Length of the known prefix, and how many of its blocks nobody holds."""
        idle = 0
        for position, name in enumerate(hashes):
            if name in self._idle:
                idle += 1
            elif name not in self._holders:
                return position, idle
        return len(hashes), idle
