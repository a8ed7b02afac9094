"""What was sent to a worker and is not yet part of its load sample.

Between a choice and the next sample a worker looks as idle as before, and everybody would be sent there: the
herding that stale load causes. So each choice counts at once, until the worker reports its id as admitted
(from then on its own figures contain the request), or the request ends, or two seconds pass without either
(more, where samples come seldom), when it evidently never arrived. Retiring by id and not by time is what
keeps a request from being counted twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tokenfleet.core.scheduling.model import Replica, Reservation

EXPIRY_S = 2.0


class Reservations:
    """All reservations that still count. Ids are unique among routers by their prefix."""

    def __init__(self, prefix: str, expiry_s: float = EXPIRY_S) -> None:
        self._prefix = prefix
        self._expiry_s = expiry_s
        self._last_number = 0
        self._counted: dict[str, Reservation] = {}
        self._by_age: deque[Reservation] = deque()

    def __len__(self) -> int:
        return len(self._counted)

    def outlast(self, interval_s: float) -> None:
        """Samples may come as seldom as that: what they would confirm has to live a second longer."""
        self._expiry_s = max(self._expiry_s, interval_s + 1.0)

    def reserve(
        self, replica: Replica, now: float, prefill_tokens: int = 0, context_tokens: int = 0
    ) -> Reservation:
        self._last_number += 1
        id_ = f"{self._prefix}{self._last_number:x}"
        reservation = Reservation(id_, replica, now, prefill_tokens, context_tokens)
        self._counted[id_] = reservation
        self._by_age.append(reservation)
        _credit(reservation, 1)
        return reservation

    def admitted(self, target: str, ids: Iterable[str]) -> None:
        """The figures of the worker at that address contain these from now on.

        Ids of other routers are ignored, and those of places elsewhere: nobody retires what others hold.
        """
        for id_ in ids:
            reservation = self._counted.get(id_)
            if reservation is not None and reservation.replica.worker.target == target:
                self.discount(reservation)

    def discount(self, reservation: Reservation) -> None:
        """Stops counting it, if it still counted."""
        if reservation.counted:
            reservation.counted = False
            _credit(reservation, -1)
            del self._counted[reservation.id]

    def expire(self, now: float) -> list[Reservation]:
        """Stops counting what no sample confirmed in time; answers what that was."""
        expired = []
        while self._by_age and self._by_age[0].made_at + self._expiry_s <= now:
            reservation = self._by_age.popleft()
            if reservation.counted:
                self.discount(reservation)
                expired.append(reservation)
        return expired


def _credit(reservation: Reservation, sign: int) -> None:
    replica = reservation.replica
    replica.reserved += sign
    replica.reserved_prefill_tokens += sign * reservation.prefill_tokens
    replica.reserved_context_tokens += sign * reservation.context_tokens
    replica.changed()
