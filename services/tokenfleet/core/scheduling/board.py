"""The replicas of one model as columns of numbers: a choice among a thousand is a few vector operations.

What a request costs somewhere is linear in the length of its prompt, that of its answer and the product of
the two, but for what is cached: so the cost of all replicas is one product of a vector and a matrix. A row is
written when a load sample, a reservation or a learned speed changes it, which happens far less often than it
is read.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenfleet.core.scheduling.model import Replica
from tokenfleet.core.scheduling.speed import Price

Column = NDArray[np.float64]

(
    FIXED,  # seconds, of any request; infinite where nothing more may be sent
    PER_PROMPT_TOKEN,
    PER_ANSWER_TOKEN,
    PER_PAIR,  # for each token of the prompt and each of the answer
    # The four above times 1, prompt, answer, prompt · answer make the cost.
    STEP_S,  # of a step with one more sequence in it, its own context left out
    PREFILL_TOKEN_S,  # what a prompt token costs to compute
    FREE,  # tokens for which there is KV cache left
    BLOCK,  # tokens of a cached block
    ZONE,
    QUEUE_S,  # until what waits there is computed
    AHEAD,  # answers that must end before one more can begin, as a share of those that run at once
    IDLE_STEP_S,  # of a step with nothing else in it
    LATE_S,
    STRAIN_S,
    COLUMNS,
) = range(15)
LINEAR = PER_PAIR + 1
UNKNOWN_ZONE = 0
NOWHERE = -1
# Speeds that differ by less are not worth to be told to everybody.
SIMILAR = 1.1
_FIRST_ROWS = 16


class Zones:
    """Zones as numbers; the unknown one is 0."""

    def __init__(self) -> None:
        self._numbers = {"": UNKNOWN_ZONE}

    def number(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers))


class Board:
    """A column a property, a row a replica; rows move when others leave.

    `rows` answers for a replica's number in the index of prefixes its row, or NOWHERE; the last one is always
    nowhere, so that a number too high may be clipped to it.
    """

    def __init__(self, zones: Zones) -> None:
        self.replicas: list[Replica] = []
        self.rows: NDArray[np.intp] = np.full(_FIRST_ROWS, NOWHERE, np.intp)
        self._zones = zones
        self._known: dict[Replica, tuple[int, int]] = {}  # row, number
        self._cells = np.zeros((COLUMNS, _FIRST_ROWS))
        self._abroad: dict[int, Column] = {}
        self._typical: Price | None = None
        self._unseen: set[Replica] = set()  # have not shown a step yet

    def __len__(self) -> int:
        return len(self.replicas)

    def column(self, which: int) -> Column:
        """A view, good until the board changes."""
        return self._cells[which, : len(self.replicas)]

    def linear(self) -> NDArray[np.float64]:
        """The columns that make the cost; a view, too."""
        return self._cells[:LINEAR, : len(self.replicas)]

    def cells(self, rows: Any) -> NDArray[np.float64]:
        """A copy of some rows, as columns."""
        copy: NDArray[np.float64] = self._cells.take(rows, axis=1)
        return copy

    def abroad(self, zone: int) -> Column:
        """1 for each replica that is not in that zone, otherwise 0."""
        known = self._abroad.get(zone)
        if known is None:
            known = self._abroad[zone] = (self.column(ZONE) != zone).astype(np.float64)
        return known

    def put(self, replica: Replica, number: int) -> None:
        """Adds it, or writes its row anew."""
        if replica not in self._known:
            row = len(self.replicas)
            self.replicas.append(replica)
            self._known[replica] = row, number
            if len(self.replicas) > self._cells.shape[1]:
                self._cells = np.concatenate([self._cells, np.zeros_like(self._cells)], axis=1)
            while number + 1 >= len(self.rows):
                self.rows = np.concatenate([self.rows, np.full_like(self.rows, NOWHERE)])
            self.rows[number] = row
        self._abroad.clear()
        replica.observer = self
        if not replica.speed.steps:
            self._unseen.add(replica)
        self.changed(replica)

    def drop(self, replica: Replica) -> None:
        """The last row takes its place."""
        known = self._known.pop(replica, None)
        if known is None:
            return
        row, number = known
        replica.observer = None
        self._unseen.discard(replica)
        self._abroad.clear()
        self.rows[number] = NOWHERE
        last = self.replicas.pop()
        if last is not replica:
            self.replicas[row] = last
            self._cells[:, row] = self._cells[:, len(self.replicas)]
            moved = self._known[last][1]
            self._known[last] = row, moved
            self.rows[moved] = row

    def changed(self, replica: Replica) -> None:
        speed = replica.speed.price
        if self._unseen:
            if not replica.speed.steps:
                speed = self._typical or speed
            else:
                self._unseen.discard(replica)
                self._suppose(speed)
        self._write(replica, speed)

    def _suppose(self, seen: Price) -> None:
        """Who has shown no step yet is taken to be as fast as who did: or nobody would ever try it."""
        if self._typical is None or not 1 / SIMILAR < _size(seen) / _size(self._typical) < SIMILAR:
            self._typical = seen
            for replica in self._unseen:
                self._write(replica, seen)

    def _write(self, replica: Replica, speed: Price) -> None:
        load = replica.running + replica.waiting + replica.reserved
        context = replica.context_tokens + replica.reserved_context_tokens
        queued = replica.queued_prefill_tokens + replica.reserved_prefill_tokens
        slots = replica.max_sequences
        ahead = max(0, load + 1 - slots) / slots if slots else 0.0
        step_s = speed.step_s(load + 1, 0, context)
        queue_s = speed.per_prefill_token_s * queued
        late_s, strain_s = replica.worker.late_s, replica.worker.device.strain_s
        fixed_s = queue_s + step_s + late_s + strain_s
        self._cells[:, self._known[replica][0]] = (
            fixed_s if load < replica.capacity else math.inf,
            speed.per_prefill_token_s + speed.per_context_token_s,
            step_s * (1.0 + ahead),
            speed.per_context_token_s * (1.0 + ahead),
            step_s,
            speed.per_prefill_token_s,
            self._free_tokens(replica),
            replica.block_size,
            self._zones.number(replica.worker.zone),
            queue_s,
            ahead,
            speed.step_s(1, 0, 0),
            late_s,
            strain_s,
        )

    @staticmethod
    def _free_tokens(replica: Replica) -> float:
        if not replica.kv_blocks_total:
            return math.inf
        # Blocks that only cache are given up on demand, so what counts is what running sequences hold. What
        # they share is held once, which the engine knows, and the lengths of contexts do not show.
        held = replica.kv_blocks_used * replica.block_size or replica.context_tokens
        waiting = replica.queued_prefill_tokens if replica.waiting else 0
        return replica.kv_blocks_total * replica.block_size - held - waiting - replica.reserved_prefill_tokens


def _size(price: Price) -> float:
    return price.step_s(8, 512, 8192)
