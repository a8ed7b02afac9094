"""One message per step, no first token delayed, merging instead of queueing."""

import asyncio

from tests.unit.worker.fakes import FakeLink
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.outbox import Outbox


class Stuck:
    def __init__(self) -> None:
        self.called = asyncio.Event()

    def __call__(self) -> None:
        self.called.set()


def outbox(
    link: FakeLink, coalesce_s: float = 0.005, stuck_s: float = 5.0, stuck: Stuck | None = None
) -> Outbox:
    return Outbox(link, coalesce_s=coalesce_s, stuck_s=stuck_s, stuck=stuck or Stuck())


def terminal(slot: int) -> worker_pb2.Terminal:
    return worker_pb2.Terminal(slot=slot, attempt=1, finish_reason=common_pb2.FINISH_REASON_STOP)


async def test_a_step_with_all_decoding_sequences_leaves_at_once_as_one_message() -> None:
    link = FakeLink()
    box = outbox(link)
    box.decoding = 3
    for slot in range(3):
        box.add(slot, 1, (10 + slot,), f"t{slot}")
    box.step_done()
    assert len(link.sent) == 1
    step = link.steps[0]
    assert list(step.slots) == [0, 1, 2]
    assert list(step.token_ids) == [10, 11, 12]
    assert list(step.token_counts) == [1, 1, 1]
    assert list(step.texts) == ["t0", "t1", "t2"]


async def test_a_sparse_step_waits_for_others_but_not_for_long() -> None:
    link = FakeLink()
    box = outbox(link)
    box.decoding = 3
    box.add(0, 1, (1,), "a")
    box.step_done()
    assert not link.sent
    box.add(1, 1, (2,), "b")
    box.add(0, 1, (3,), "c")
    box.step_done()
    assert not link.sent
    box.add(2, 1, (4,), "d")
    box.step_done()
    assert len(link.sent) == 1
    assert list(link.steps[0].token_counts) == [2, 1, 1]
    assert list(link.steps[0].token_ids) == [1, 3, 2, 4]
    assert list(link.steps[0].texts) == ["ac", "b", "d"]
    box.add(0, 1, (5,), "e")
    box.step_done()
    while len(link.sent) < 2:
        await asyncio.sleep(0)
    assert list(link.steps[1].token_ids) == [5]


async def test_a_first_token_takes_along_what_waits() -> None:
    link = FakeLink()
    box = outbox(link, coalesce_s=60)
    box.decoding = 2
    box.add(0, 1, (1,), "a")
    box.step_done()
    box.urgent = True  # as the dispatcher says of a first token
    box.add(5, 1, (2,), "b")
    box.step_done()
    assert [list(step.slots) for step in link.steps] == [[0, 5]]


async def test_an_end_is_in_the_message_of_its_last_delta() -> None:
    link = FakeLink()
    box = outbox(link, coalesce_s=60)
    box.decoding = 9
    box.add(3, 1, (1,), "a")
    box.end(terminal(3))
    box.step_done()
    assert len(link.sent) == 1
    assert [one.slot for one in link.steps[0].terminals] == [3]


async def test_while_the_gateway_does_not_keep_up_deltas_merge_and_nothing_is_sent() -> None:
    link = FakeLink()
    link.writable = False
    box = outbox(link)
    for token in range(100):
        box.add(1, 1, (token,), "x")
        box.add(2, 1, (token,), "y")
        box.step_done()
    box.end(terminal(1))
    box.step_done()
    assert not link.sent
    link.writable = True
    box.writable_again()
    assert len(link.sent) == 1
    assert list(link.steps[0].token_counts) == [100, 100]
    assert list(link.steps[0].texts) == ["x" * 100, "y" * 100]
    assert len(link.steps[0].terminals) == 1


async def test_a_gateway_that_takes_nothing_is_given_up() -> None:
    link, stuck = FakeLink(), Stuck()
    link.writable = False
    box = outbox(link, stuck_s=0.01, stuck=stuck)
    box.add(1, 1, (1,), "x")
    box.step_done()
    await stuck.called.wait()


async def test_a_gateway_that_takes_something_in_time_is_not() -> None:
    link, stuck = FakeLink(), Stuck()
    box = outbox(link, stuck_s=0.02, stuck=stuck)
    link.writable = False
    box.add(1, 1, (1,), "x")
    box.step_done()
    link.writable = True
    box.writable_again()
    await asyncio.sleep(0.05)
    assert not stuck.called.is_set()


async def test_a_closed_outbox_sends_nothing_more() -> None:
    link = FakeLink()
    box = outbox(link)
    box.decoding = 2
    box.add(1, 1, (1,), "x")
    box.step_done()
    box.close()
    await asyncio.sleep(0.01)
    assert not link.sent
