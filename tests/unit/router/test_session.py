"""A gateway's stream: one message a tick, nothing piled up for a gateway that does not keep up."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tokenfleet.router.dispatcher import Dispatcher
from tokenfleet.router.session import Session
from tokenfleet.router.settings import RouterSettings
from tokenfleet.router.worker_watch import WorkerWatch
from tokenfleet.runtime.catalog import CatalogWatch
from tokenfleet.runtime.discovery import Peer
from tokenfleet.runtime.settings import load_settings
from tokenfleet.v1 import common_pb2, model_loader_pb2, router_pb2, worker_pb2

TARGET = "127.0.0.1:1"
Resident = worker_pb2.ResidentModel


class Link:
    peer = "test"

    def __init__(self) -> None:
        self.writable = True
        self.sent: list[router_pb2.ScheduleResponse] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def decided(self) -> list[tuple[int, str | None]]:
        return [(d.ask_id, d.WhichOneof("kind")) for message in self.sent for d in message.decisions]


class Bench:
    def __init__(self) -> None:
        catalog = CatalogWatch("127.0.0.1:1")
        self.wishes: list[Any] = []
        self.dispatcher = Dispatcher(
            load_settings(RouterSettings, []),
            catalog,
            self.wishes.append,
            lambda _: None,
            CollectorRegistry(),
        )
        spec = common_pb2.ModelSpec(name="m", engines=[common_pb2.ModelSpec.EngineConfig(engine="sim")])
        catalog._received(model_loader_pb2.WatchCatalogResponse(models=[spec]))
        self.watch = WorkerWatch(Peer(TARGET), "test", 50, self.dispatcher)
        self.dispatcher.watch(self.watch)
        self.link = Link()
        self.session = Session(self.dispatcher, self.link)

    def worker(self, *models: Resident) -> None:
        info = worker_pb2.WorkerInfo(
            worker_id="w-1", state=worker_pb2.WORKER_STATE_READY, engines=["sim"], models=models
        )
        self.watch._received(worker_pb2.WatchResponse(info=info))

    def holds(self, slots: int) -> None:
        self.worker(Resident(model="m", state=Resident.STATE_READY, max_sequences=slots - 1))

    def ask(self, *ids: int, **fields: Any) -> None:
        asks = [router_pb2.Ask(ask_id=id_, model="m", **fields) for id_ in ids]
        self.session.received([router_pb2.ScheduleRequest(asks=asks)])


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.session.closed("over")


async def test_all_that_one_read_brought_is_answered_in_one_message(bench: Bench) -> None:
    bench.holds(slots=3)
    messages = [router_pb2.ScheduleRequest(asks=[router_pb2.Ask(ask_id=n, model="m")]) for n in range(4)]
    bench.session.received(messages)
    assert len(bench.link.sent) == 1
    assert bench.link.decided() == [(0, "placement"), (1, "placement"), (2, "placement"), (3, "waiting")]


async def test_releases_come_before_the_asks_of_the_same_message(bench: Bench) -> None:
    bench.holds(slots=2)
    bench.ask(1, 2)
    release = router_pb2.Release(ask_id=1)
    bench.session.received(
        [router_pb2.ScheduleRequest(asks=[router_pb2.Ask(ask_id=3, model="m")], releases=[release])]
    )
    assert bench.link.decided()[-1] == (3, "placement")


async def test_a_gateway_that_does_not_read_gets_decisions_later_and_progress_not_at_all(
    bench: Bench,
) -> None:
    bench.worker()
    bench.ask(1)
    (wish,) = bench.wishes
    assert bench.link.decided() == [(1, "waiting")]
    bench.link.writable = False
    for done in range(1000):
        bench.dispatcher.scheduler.load_progressed(wish, common_pb2.LoadProgress(bytes_done=done))
        bench.dispatcher.flush()
    bench.holds(slots=2)
    assert len(bench.link.sent) == 1
    bench.link.writable = True
    bench.session.writable_again()
    assert bench.link.decided() == [(1, "waiting"), (1, "placement")]


async def test_an_ask_id_in_use_is_refused_and_the_first_ask_stands(bench: Bench) -> None:
    bench.holds(slots=2)
    bench.ask(1)
    bench.ask(1)
    assert bench.link.decided() == [(1, "placement"), (1, "failure")]
    failure = bench.link.sent[-1].decisions[0].failure
    assert (failure.reason, failure.field) == (common_pb2.REASON_INVALID_ARGUMENT, "ask_id")
    assert len(bench.dispatcher.scheduler.reservations) == 1


async def test_a_cancelled_placement_is_released(bench: Bench) -> None:
    bench.holds(slots=2)
    bench.ask(1)
    cancel = router_pb2.ScheduleRequest(cancels=[router_pb2.CancelAsk(ask_id=1)])
    bench.session.received([cancel, cancel])
    assert len(bench.dispatcher.scheduler.reservations) == 0


async def test_unreleased_placements_of_one_gateway_are_bounded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenfleet.router.session.MOST_PLACED", 10)
    bench.holds(slots=1000)
    bench.ask(*range(50))
    assert len(bench.session._placed) == 10


async def test_a_placement_says_all_that_the_gateway_needs(bench: Bench) -> None:
    fingerprint = common_pb2.Fingerprint(engine="sim", weights_digest="abc")
    bench.worker(Resident(model="m", state=Resident.STATE_READY, residency_epoch=7, fingerprint=fingerprint))
    bench.ask(1)
    placement = bench.link.sent[0].decisions[0].placement
    assert (placement.worker_id, placement.endpoint, placement.model) == ("w-1", TARGET, "m")
    assert placement.residency_epoch == 7
    assert placement.fingerprint == fingerprint
    assert placement.reservation_id
