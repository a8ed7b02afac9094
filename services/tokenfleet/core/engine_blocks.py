"""An engine's KV-cache events in the fleet's own words: canonical block hashes.

Engines name blocks by hashes of their own making, cut them to sizes of their own choosing (vLLM on a CPU:
128 tokens, TensorRT-LLM: 32 or 64), and some also tell of blocks that are not full. Routers compare chains of
`core.blocks`, whose block size belongs to the model. So each engine block is remembered with what it means:
the canonical blocks that end in it, and the ids behind the last of them. A canonical block is cached while
all engine blocks that have ids of it are. What cannot be traced back to the root is left out: an index that
lacks a block costs a little routing, one that believes in a wrong block costs a prefill.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tokenfleet.core.blocks import hashes_behind


class CacheListener(Protocol):
    """Hears which canonical blocks come and go."""

    def cache_stored(self, hashes: Sequence[int], parent: int) -> None:
        """A chain of blocks; `parent` is the one before the first, 0 at the root."""

    def cache_removed(self, hashes: Sequence[int]) -> None: ...


@dataclass(slots=True, eq=False)
class _Block:
    """What one engine block means."""

    parent: int = 0  # canonical hash before the first of `ending`
    ending: Sequence[int] = ()  # canonical blocks that end in it, in order
    rest: Sequence[int] = ()  # ids behind the last of them
    holding: Sequence[int] = ()  # engine blocks that `rest` lies in
    crossing: set[int] = field(default_factory=set)  # later engine blocks whose first `ending` began in it
    copies: int = 1


class EngineBlocks:
    """Translates the events of one engine. The engine's cache bounds it, since it follows the removals."""

    def __init__(self, block_size: int, listener: CacheListener) -> None:
        self._block_size = block_size
        self._listener = listener
        self._blocks: dict[int, _Block] = {}
        self._holders: dict[int, set[int]] = {}  # canonical block: the engine blocks by which it is cached
        self.untraceable = 0  # engine blocks left out, since what comes before them is not known

    def __len__(self) -> int:
        """Engine blocks that are known."""
        return len(self._blocks)

    def stored(self, name: int, parent: int | None, token_ids: Sequence[int]) -> None:
        """The engine cached a block of these ids behind its block `parent`; None at the root."""
        known = self._blocks.get(name)
        if known is not None:
            known.copies += 1
            return
        before = _ROOT if parent is None else self._blocks.get(parent)
        if before is None:
            self.untraceable += 1
            return
        block = self._blocks[name] = self._meaning(name, before, token_ids)
        self._cached(name, block, before.holding)

    def removed(self, names: Iterable[int]) -> None:
        """The engine dropped one copy of each of these blocks."""
        gone: list[int] = []
        for name in names:
            block = self._blocks.get(name)
            if block is None:
                continue
            block.copies -= 1
            if block.copies:
                continue
            del self._blocks[name]
            for canonical in block.ending:
                self._drop(canonical, name, gone)
            for later in block.crossing:
                crossing = self._blocks.get(later)
                if crossing is not None:
                    self._drop(crossing.ending[0], later, gone)
        if gone:
            self._listener.cache_removed(gone)

    def cleared(self) -> None:
        """Nothing is cached any more, or what is cached is no longer known."""
        gone = list(self._holders)
        self._blocks.clear()
        self._holders.clear()
        if gone:
            self._listener.cache_removed(gone)

    def _meaning(self, name: int, before: _Block, token_ids: Sequence[int]) -> _Block:
        parent = before.ending[-1] if before.ending else before.parent
        ids = (*before.rest, *token_ids)
        ending = hashes_behind(parent, ids, self._block_size)
        rest = ids[len(ending) * self._block_size :]
        holding: Sequence[int] = ()
        if rest:
            holding = (name,) if ending else (*before.holding, name)
        return _Block(parent, ending, rest, holding)

    def _cached(self, name: int, block: _Block, began_in: Sequence[int]) -> None:
        new: list[int] = []
        parent = block.parent
        for index, canonical in enumerate(block.ending):
            if index == 0 and not self._whole(name, began_in):
                parent = canonical
                continue
            holders = self._holders.setdefault(canonical, set())
            if holders and not new:
                parent = canonical
            else:
                new.append(canonical)
            holders.add(name)
        if new:
            self._listener.cache_stored(new, parent)

    def _whole(self, name: int, began_in: Sequence[int]) -> bool:
        """Whether all engine blocks are still there that have ids of the first canonical block of `name`."""
        parts = [self._blocks.get(earlier) for earlier in began_in]
        for part in parts:
            if part is None:
                return False
        for part in parts:
            assert part is not None
            part.crossing.add(name)
        return True

    def _drop(self, canonical: int, name: int, gone: list[int]) -> None:
        holders = self._holders.get(canonical)
        if holders is None or name not in holders:
            return
        holders.remove(name)
        if not holders:
            del self._holders[canonical]
            gone.append(canonical)


_ROOT = _Block()
