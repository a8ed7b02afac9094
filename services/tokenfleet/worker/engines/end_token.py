"""What becomes of an answer's end token: an answer that ends by itself ends with its last text token.

Some engines deliver the end token before they say that the answer is over. It is held back until the next
word about the answer: when that is its end, the token goes; when the answer goes on, or was cut off just
there, it was a token like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Set


class EndToken:
    """Of one sequence."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: list[int] = []

    def pass_on(self, new: Iterable[int], end_ids: Set[int], *, cut_off: bool = False) -> list[int]:
        """The ids to deliver now. `cut_off`: these are the last, and it was not the answer that ended."""
        ids = [*self._held, *new]
        self._held = []
        if not cut_off and ids and ids[-1] in end_ids:
            self._held = [ids.pop()]
        return ids
