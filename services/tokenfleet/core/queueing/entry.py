"""One who waits, and where."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Lane(IntEnum):
    """Places of one kind, in the order in which they are served."""

    INTERACTIVE_RESUMED = 0
    INTERACTIVE = 1
    STANDARD_RESUMED = 2
    STANDARD = 3
    BATCH_RESUMED = 4
    BATCH = 5

    @property
    def resumed(self) -> bool:
        return self in _RESUMED

    @property
    def priority_class(self) -> str:
        return self.name.removesuffix("_RESUMED").lower()


_RESUMED = frozenset({Lane.INTERACTIVE_RESUMED, Lane.STANDARD_RESUMED, Lane.BATCH_RESUMED})


@dataclass(slots=True, eq=False)
class Entry(Generic[Item]):
    """`deadline` is when the wait ends in any case; `tokens` is what the request will take, about."""

    item: Item
    lane: Lane
    since: float
    deadline: float
    number: int
    tenant: str = ""
    tokens: int = 1
    waiting: bool = True

    def __lt__(self, other: Entry[Item]) -> bool:
        return (self.deadline, self.number) < (other.deadline, other.number)
