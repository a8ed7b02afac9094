"""The ring of decisions is bounded, and tells each tenant of its own requests only."""

from typing import Any, cast

from tokenfleet.core.queueing import Lane
from tokenfleet.core.scheduling import Refused, Scene
from tokenfleet.router.ask import Ask
from tokenfleet.router.records import DecisionRecords


def ask(request_id: str, tenant: str = "t", attempt: int = 1) -> Ask:
    return Ask(
        request_id=request_id,
        model="m",
        lane=Lane.STANDARD,
        asked_at=0.0,
        deadline=1.0,
        attempt=attempt,
        session=cast(Any, None),
        ask_id=1,
        tenant=tenant,
        prompt_tokens=1,
        received_at=0.0,
    )


REFUSED = Refused("no_worker", "none", 1.0, 0.5, Scene([], []))


def test_the_oldest_goes_first_and_attempts_stay_in_order() -> None:
    records = DecisionRecords(3, lambda model: "least_loaded")
    for request_id, attempt in (("a", 1), ("b", 1), ("a", 2), ("a", 3)):
        records.add(ask(request_id, attempt=attempt), REFUSED, 1e-5)
    assert [record.attempt for record in records.find("a", "t")] == [2, 3]
    assert [record.failure.message for record in records.find("b", "t")] == ["none"]
    for _ in range(3):
        records.add(ask("c"), REFUSED, 1e-5)
    assert not records.find("a", "t")
    assert not records._by_request.keys() - {"c"}


def test_another_tenants_requests_are_not_told() -> None:
    records = DecisionRecords(10, lambda model: "least_loaded")
    records.add(ask("a", tenant="one"), REFUSED, 1e-5)
    records.add(ask("a", tenant="two"), REFUSED, 1e-5)
    assert len(records.find("a", "one")) == 1
    assert not records.find("a", "three")


def test_none_are_kept_when_none_are_wanted() -> None:
    records = DecisionRecords(0, lambda model: "least_loaded")
    assert records.add(ask("a"), REFUSED, 1e-5) is None
    assert not records.find("a", "t")
