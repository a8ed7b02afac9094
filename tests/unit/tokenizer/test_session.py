import asyncio
from collections.abc import Sequence
from typing import cast

from tokenfleet.tokenizer import session as session_module
from tokenfleet.tokenizer.queue import EncodeQueue
from tokenfleet.tokenizer.session import EncodeSession
from tokenfleet.v1 import tokenizer_pb2


class FakeLink:
    peer = "gateway:1"

    def __init__(self) -> None:
        self.writable = True
        self.sent: list[list[int]] = []
        self.ended = ""

    def send(self, message: tokenizer_pb2.EncodeResponse) -> None:
        self.sent.append([result.job_id for result in message.results])

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"


class FakeQueue:
    def __init__(self) -> None:
        self.jobs: list[int] = []

    def submit(self, recipient: object, jobs: Sequence[tokenizer_pb2.EncodeJob]) -> None:
        self.jobs += [job.job_id for job in jobs]


def results(*numbers: int) -> tokenizer_pb2.EncodeResponse:
    return tokenizer_pb2.EncodeResponse(
        results=[tokenizer_pb2.EncodeResult(job_id=number) for number in numbers]
    )


def session(link: FakeLink, queue: FakeQueue | None = None) -> EncodeSession:
    return EncodeSession(cast(EncodeQueue, queue or FakeQueue()), link, set())


async def test_all_messages_of_one_read_are_one_lot() -> None:
    queue = FakeQueue()
    requests = [
        tokenizer_pb2.EncodeRequest(jobs=[tokenizer_pb2.EncodeJob(job_id=number) for number in numbers])
        for numbers in ((1, 2), (3,))
    ]
    session(FakeLink(), queue).received(requests)
    assert queue.jobs == [1, 2, 3]


async def test_results_of_one_turn_leave_together() -> None:
    link = FakeLink()
    one = session(link)
    one.deliver(results(1))
    one.deliver(results(2, 3))
    assert link.sent == []
    await asyncio.sleep(0)
    assert link.sent == [[1, 2, 3]]
    one.deliver(results(4))
    await asyncio.sleep(0)
    assert link.sent == [[1, 2, 3], [4]]


async def test_a_slow_gateway_gets_what_it_missed_in_one_message() -> None:
    link = FakeLink()
    one = session(link)
    link.writable = False
    for number in range(5):
        one.deliver(results(number))
        await asyncio.sleep(0)
    assert link.sent == []
    link.writable = True
    one.writable_again()
    assert link.sent == [[0, 1, 2, 3, 4]]


async def test_a_gateway_that_never_reads_is_disconnected() -> None:
    link = FakeLink()
    one = session(link)
    link.writable = False
    for number in range(session_module.HELD_RESULTS):
        one.deliver(results(number))
    assert link.ended == ""
    one.deliver(results(0))
    assert link.ended == "aborted"


async def test_closing_sends_what_is_there() -> None:
    link = FakeLink()
    one = session(link)
    one.deliver(results(1))
    one.close()
    await asyncio.sleep(0)
    assert (link.sent, link.ended) == ([[1]], "closed")


async def test_a_closed_one_is_forgotten() -> None:
    sessions: set[EncodeSession] = set()
    one = EncodeSession(cast(EncodeQueue, FakeQueue()), FakeLink(), sessions)
    assert sessions == {one}
    one.closed("gone")
    assert not sessions
    assert not one.open
