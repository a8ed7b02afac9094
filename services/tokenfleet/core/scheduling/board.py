"""The replicas of one model as columns of numbers: a choice among a thousand is a few vector operations.

A row is written when a load sample, a reservation or a learned speed changes it, which happens far less often
than it is read.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tokenfleet.core.scheduling.model import Replica

Column = NDArray[np.float64]

(
    STEP_S,  # of a step with one more sequence in it, its own context left out
    CONTEXT_TOKEN_S,  # what each token of that context adds
    PREFILL_TOKEN_S,  # what a prompt token costs
    QUEUED_S,  # what the prompt tokens cost that are to be computed before a new request's
    AHEAD,  # answers that must end before one more can begin, as a share of those that run at once
    FREE,  # tokens for which there is KV cache left
    FULL,  # infinite where nothing more may be sent, otherwise 0
    ZONE,
    COLUMNS,
) = range(9)
UNKNOWN_ZONE = 0
_FIRST_ROWS = 16


class Zones:
    """Zones as numbers; the unknown one is 0."""

    def __init__(self) -> None:
        self._numbers = {"": UNKNOWN_ZONE}

    def number(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers))


class Board:
    """A column a property, a row a replica; rows move when others leave."""

    def __init__(self, zones: Zones) -> None:
        self.replicas: list[Replica] = []
        self._zones = zones
        self._rows: dict[Replica, int] = {}
        self._cells = np.zeros((COLUMNS, _FIRST_ROWS))

    def __len__(self) -> int:
        return len(self.replicas)

    def column(self, which: int) -> Column:
        """A view, good until the board changes."""
        return self._cells[which, : len(self.replicas)]

    def row(self, replica: Replica) -> int | None:
        return self._rows.get(replica)

    def put(self, replica: Replica) -> None:
        """Adds it, or writes its row anew."""
        if replica not in self._rows:
            self._rows[replica] = len(self.replicas)
            self.replicas.append(replica)
            if len(self.replicas) > self._cells.shape[1]:
                self._cells = np.concatenate([self._cells, np.zeros_like(self._cells)], axis=1)
        replica.observer = self
        self.changed(replica)

    def drop(self, replica: Replica) -> None:
        """The last row takes its place."""
        row = self._rows.pop(replica, None)
        if row is None:
            return
        replica.observer = None
        last = self.replicas.pop()
        if last is not replica:
            self.replicas[row] = last
            self._rows[last] = row
            self._cells[:, row] = self._cells[:, len(self.replicas)]

    def changed(self, replica: Replica) -> None:
        price = replica.speed.price
        load = replica.running + replica.waiting + replica.reserved
        context = replica.context_tokens + replica.reserved_context_tokens
        queued = replica.queued_prefill_tokens + replica.reserved_prefill_tokens
        slots = replica.max_sequences
        self._cells[:, self._rows[replica]] = (
            price.step_s(load + 1, 0, context),
            price.per_context_token_s,
            price.per_prefill_token_s,
            price.per_prefill_token_s * queued,
            max(0, load + 1 - slots) / slots if slots else 0.0,
            self._free_tokens(replica),
            0.0 if load < replica.capacity else math.inf,
            self._zones.number(replica.worker.zone),
        )

    @staticmethod
    def _free_tokens(replica: Replica) -> float:
        if not replica.kv_blocks_total:
            return math.inf
        # Blocks that only cache are given up on demand, so what counts is what running sequences hold.
        held = replica.context_tokens + replica.reserved_context_tokens + replica.queued_prefill_tokens
        return replica.kv_blocks_total * replica.block_size - held
