"""A vocabulary's bytes in two allocations.

As a list of `bytes`, 49,152 tokens are as many small objects. While a model is loaded, what lives longer
comes to lie among them, and each megabyte in which one such neighbour does stays with the process when the
model has gone. Two large buffers take a fifth of the memory, and are given back as a whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import overload


class TokenBytes(Sequence[bytes]):
    """Indexed by id, never from the end; each look-up makes the object anew."""

    __slots__ = ("_ends", "_joined")

    def __init__(self, joined: bytes, ends: array[int]) -> None:
        """All tokens' bytes one after the other, and where each one's end."""
        self._joined = joined
        self._ends = ends

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        end = self._ends[index]
        return self._joined[self._ends[index - 1] if index else 0 : end]

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[bytes]:
        joined, start = self._joined, 0
        for end in self._ends:
            yield joined[start:end]
            start = end
