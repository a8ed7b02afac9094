"""KV blocks of prompts, kept for later prompts that begin alike.

A block is named by its canonical hash, which covers everything before it, so a name is found only behind the
same tokens. The longest unused go first, and of one prompt its end before its start.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch


class BlockStore:
    """A block is a tensor (layers, 2, heads, tokens of a block, width) of keys and values."""

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._blocks: OrderedDict[int, torch.Tensor] = OrderedDict()

    def find(self, hashes: Sequence[int]) -> list[torch.Tensor]:
        """The blocks of the longest prefix that is here."""
        found = []
        for name in hashes:
            block = self._blocks.get(name)
            if block is None:
                break
            found.append(block)
        self._touch(hashes[: len(found)])
        return found

    def keep(self, hashes: Sequence[int], known: int, blocks: Sequence[torch.Tensor]) -> set[int]:
        """Takes the blocks behind the first `known` ones; answers the names of those that are new."""
        new = set()
        for name, block in zip(hashes[known:], blocks, strict=True):
            if name not in self._blocks:
                self._blocks[name] = block
                new.add(name)
        self._touch(hashes)
        return new

    def evict(self) -> list[int]:
        """Drops what is too much; answers the names."""
        evicted = []
        while len(self._blocks) > self._capacity:
            evicted.append(self._blocks.popitem(last=False)[0])
        return evicted

    def _touch(self, hashes: Sequence[int]) -> None:
        for name in reversed(hashes):
            if name in self._blocks:
                self._blocks.move_to_end(name)
