"""Why a request went where it went: the latest decisions, by request id, for the tenant they belong to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tokenfleet.core.scheduling import Placed, Refused
from tokenfleet.router.ask import Ask
from tokenfleet.router.translate import candidate, failure
from tokenfleet.v1 import router_pb2


@dataclass(slots=True, eq=False)
class Record:
    """One final decision; `actual` comes when the request has ended: a `Release`, packed."""

    ask: Ask
    decision: Placed | Refused
    decided_in_s: float
    actual: bytes | None = None


class DecisionRecords:
    """A ring of `limit` records."""

    def __init__(self, limit: int, policy: Callable[[str], str]) -> None:
        """`policy` tells which one decides about a model."""
        self._limit = limit
        self._policy = policy
        self._ring: deque[Record] = deque()
        self._by_request: dict[str, list[Record]] = {}

    def add(self, ask: Ask, decision: Placed | Refused, decided_in_s: float) -> Record | None:
        if not self._limit:
            return None
        record = Record(ask, decision, decided_in_s)
        self._ring.append(record)
        self._by_request.setdefault(ask.request_id, []).append(record)
        if len(self._ring) > self._limit:
            self._forget(self._ring.popleft())
        return record

    def find(self, request_id: str, tenant: str) -> list[router_pb2.DecisionRecord]:
        """One record per attempt, oldest first; nothing of another tenant's requests."""
        records = self._by_request.get(request_id, ())
        return [self._describe(record) for record in records if record.ask.tenant == tenant]

    def _forget(self, record: Record) -> None:
        records = self._by_request[record.ask.request_id]
        records.remove(record)
        if not records:
            del self._by_request[record.ask.request_id]

    def _describe(self, record: Record) -> router_pb2.DecisionRecord:
        ask, decision = record.ask, record.decision
        described = router_pb2.DecisionRecord(
            request_id=ask.request_id,
            attempt=ask.attempt,
            model=ask.model,
            policy=self._policy(ask.model),
            candidates=map(candidate, decision.scene.candidates(ask.excluded, ask.features)),
            waited_s=decision.waited_s,
            decided_in_us=record.decided_in_s * 1e6,
        )
        if record.actual is not None:
            described.actual.CopyFrom(router_pb2.Release.FromString(record.actual))
        if isinstance(decision, Placed):
            described.chosen_worker = decision.reservation.replica.worker.id
            described.why = decision.why
        else:
            described.why = decision.message
            described.failure.CopyFrom(failure(decision))
        return described
