"""What the prefix caches of this worker hold, told as changes, and as a whole to whoever has missed some.

Routers choose by what is cached where, and what they know must be exact or known not to be. So every change
has a number, without gaps; the latest changes are kept for watchers that fall behind a little; one that fell
behind further, or comes new, gets the whole as it is now and goes on from there. The mirror is as large as
the engines' caches, which bound it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from tokenfleet.v1 import worker_pb2

EVENTS_KEPT = 4096
HASHES_IN_CHUNK = 8192


class CacheLog:
    """The caches of all models, in canonical block hashes. Belongs to the event loop's thread."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.sequence = 0
        self._changed = changed
        self._parents: dict[str, dict[int, int]] = {}  # of each block, by model
        self._events: deque[worker_pb2.CacheEvent] = deque(maxlen=EVENTS_KEPT)

    def stored(self, model: str, hashes: Sequence[int], parent: int) -> None:
        """The blocks of a chain are cached; `parent` is the hash before the first, 0 at the root."""
        parents = self._parents.setdefault(model, {})
        previous = parent
        for block in hashes:
            parents[block] = previous
            previous = block
        self._add(worker_pb2.CacheEvent(model=model, stored=hashes, stored_parent=parent))

    def removed(self, model: str, hashes: Sequence[int]) -> None:
        """The blocks are cached no longer."""
        parents = self._parents.get(model, {})
        for block in hashes:
            parents.pop(block, None)
        self._add(worker_pb2.CacheEvent(model=model, removed=hashes))

    def cleared(self, model: str) -> None:
        """Nothing is cached for the model: its engine was started afresh, or is gone."""
        if self._parents.get(model):
            self._parents[model] = {}
            self._add(worker_pb2.CacheEvent(model=model, cleared=True))

    def after(self, sequence: int) -> list[worker_pb2.CacheEvent] | None:
        """The events behind that one; None when they are not all here, or there never was such a one."""
        missing = self.sequence - sequence
        if sequence < 0 or not 0 <= missing <= len(self._events):
            return None
        return list(islice(self._events, len(self._events) - missing, None))

    def snapshot(self) -> Iterator[worker_pb2.CacheSnapshot]:
        """All caches as they are now, in chunks. To be used up before anything changes.

        That there is nothing is told as well: it is from there on that a change may be missed.
        """
        if not self._parents:
            yield worker_pb2.CacheSnapshot(last=True, sequence=self.sequence)
        for model, parents in self._parents.items():
            pairs = list(parents.items())
            for start in range(0, len(pairs) or 1, HASHES_IN_CHUNK):
                part = pairs[start : start + HASHES_IN_CHUNK]
                yield worker_pb2.CacheSnapshot(
                    model=model,
                    hashes=[block for block, _ in part],
                    parents=[parent for _, parent in part],
                    last=start + HASHES_IN_CHUNK >= len(pairs),
                    sequence=self.sequence,
                )

    def _add(self, event: worker_pb2.CacheEvent) -> None:
        self.sequence += 1
        event.sequence = self.sequence
        self._events.append(event)
        self._changed()
