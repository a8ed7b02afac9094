"""The replicas of one model as they stand, and as columns of numbers, where there are many.

What a request costs somewhere is linear in the length of its prompt, that of its answer and the product of
the two, but for what is cached: so the cost on a thousand replicas is one product of a vector and a matrix.
For a few it is sooner summed one by one. What load samples and reservations change is written when it is
read: in between, a fleet that nobody asks anything of costs nothing here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenfleet.core.scheduling.model import Replica
from tokenfleet.core.scheduling.speed import Price
from tokenfleet.core.scheduling.standing import NUMBERS, UNKNOWN_ZONE, Standing, standing_of

Column = NDArray[np.float64]

(
    FIXED,
    PER_PROMPT_TOKEN,
    PER_ANSWER_TOKEN,
    PER_PAIR,
    STEP_S,
    PREFILL_TOKEN_S,
    FREE,
    BLOCK,
    ZONE,
    QUEUE_S,
    AHEAD,
    IDLE_STEP_S,
    LATE_S,
    STRAIN_S,
) = range(NUMBERS)
"""The columns: a standing's numbers, in its order."""
LINEAR = PER_PAIR + 1
NOWHERE = -1
# Speeds that differ by less are not worth to be told to everybody.
SIMILAR = 1.1
_FIRST_ROWS = 16


class Zones:
    """Zones as numbers; the unknown one is 0."""

    def __init__(self) -> None:
        self._numbers = {"": UNKNOWN_ZONE}

    def number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._numbers)
        return number


class Board:
    """A row a replica; rows move when others leave.

    `row_of` and `rows` answer for a replica's number in the index of prefixes its row; in `rows` that is
    NOWHERE for others, the last of them always, so that a number too high may be clipped to it.
    """

    def __init__(self, zones: Zones) -> None:
        self.row_of: dict[int, int] = {}
        self.rows: NDArray[np.intp] = np.full(_FIRST_ROWS, NOWHERE, np.intp)
        self._zones = zones
        self._known: dict[Replica, tuple[int, int]] = {}  # row, number
        self._standings: list[Standing] = []
        self._changed: dict[Replica, None] = {}  # since it was last written; in order, so that runs repeat
        self._cells = np.zeros((NUMBERS, _FIRST_ROWS))
        self._not_in_cells: dict[Replica, None] = {}
        self._abroad: dict[int, Column] = {}
        self._typical: Price | None = None
        self._unseen: dict[Replica, None] = {}  # have not shown a step yet

    def __len__(self) -> int:
        return len(self._standings)

    def standings(self) -> list[Standing]:
        """As all stand now; good until the board changes, each of them for ever."""
        if self._changed:
            self._write()
        return self._standings

    def cells(self) -> NDArray[np.float64]:
        """The numbers of all, a column a row; a view, good until the board changes."""
        standings = self.standings()
        for replica in self._not_in_cells:
            row = self._known[replica][0]
            self._cells[:, row] = standings[row].numbers()
        self._not_in_cells.clear()
        return self._cells[:, : len(standings)]

    def abroad(self, zone: int) -> Column:
        """1 for each replica that is not in that zone, otherwise 0."""
        known = self._abroad.get(zone)
        if known is None:
            known = self._abroad[zone] = (self.cells()[ZONE] != zone).astype(np.float64)
        return known

    def put(self, replica: Replica, number: int) -> None:
        """Adds it, or writes its row anew."""
        if replica not in self._known:
            row = len(self._standings)
            self._standings.append(self._standing(replica))
            self._known[replica] = row, number
            self.row_of[number] = row
            if row >= self._cells.shape[1]:
                self._cells = np.concatenate([self._cells, np.zeros_like(self._cells)], axis=1)
            while number + 1 >= len(self.rows):
                self.rows = np.concatenate([self.rows, np.full_like(self.rows, NOWHERE)])
            self.rows[number] = row
        self._abroad.clear()
        replica.observer = self
        if not replica.speed.steps:
            self._unseen[replica] = None
        self.changed(replica)

    def drop(self, replica: Replica) -> None:
        """The last row takes its place."""
        known = self._known.pop(replica, None)
        if known is None:
            return
        row, number = known
        replica.observer = None
        for noted in (self._unseen, self._changed, self._not_in_cells):
            noted.pop(replica, None)
        self._abroad.clear()
        del self.row_of[number]
        self.rows[number] = NOWHERE
        standing = self._standings.pop()
        last = standing.replica
        if last is not replica:
            moved = self._known[last][1]
            self._standings[row] = standing
            self._known[last] = row, moved
            self.row_of[moved] = self.rows[moved] = row
            self._not_in_cells[last] = None

    def changed(self, replica: Replica) -> None:
        """Its row is to be written before it is read."""
        self._changed[replica] = None

    def _write(self) -> None:
        if self._unseen:
            for replica in tuple(self._changed):
                self._suppose(replica)
        known, standings = self._known, self._standings
        for replica in self._changed:
            standings[known[replica][0]] = self._standing(replica)
        self._not_in_cells.update(self._changed)
        self._changed.clear()

    def _suppose(self, replica: Replica) -> None:
        """Who has shown no step yet is taken to be as fast as who did: or nobody would ever try it."""
        if not replica.speed.steps:
            return
        self._unseen.pop(replica, None)
        seen = replica.speed.price
        if self._typical is None or not 1 / SIMILAR < _size(seen) / _size(self._typical) < SIMILAR:
            self._typical = seen
            self._changed.update(self._unseen)

    def _standing(self, replica: Replica) -> Standing:
        speed = replica.speed
        price = speed.price if speed.steps else self._typical or speed.price
        return standing_of(replica, price, self._zones.number(replica.worker.zone))


def _size(price: Price) -> float:
    return price.step_s(8, 512, 8192)
