"""A vocabulary's bytes in two allocations.

As a list of `bytes`, 49,152 tokens are as many small objects. While a model is loaded, what lives longer
comes to lie among them, and each megabyte in which one such neighbour does stays with the process when the
model has gone. Two large buffers take a fifth of the memory, and are given back as a whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import overload


class TokenBytes(Sequence[bytes]):
    """Indexed by id, never from the end; each look-up makes the object anew."""

    __slots__ = ("_borders", "_joined")

    def __init__(self, contents: Iterable[bytes]) -> None:
        contents = list(contents)
        self._joined = b"".join(contents)
        self._borders = array("I", accumulate(map(len, contents), initial=0))

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        borders = self._borders
        return self._joined[borders[index] : borders[index + 1]]

    def __len__(self) -> int:
        return len(self._borders) - 1

    def __iter__(self) -> Iterator[bytes]:
        joined, start = self._joined, 0
        for end in self._borders[1:]:
            yield joined[start:end]
            start = end
