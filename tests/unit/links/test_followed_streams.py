"""A server's stream that is followed: as frames where both sides have them, over gRPC where not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.unit.links.test_secure_links import being, identity_of
from tests.unit.links.worker_server import served
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.following import Framed, Resubscribe, StreamFollower
from tokenfleet.runtime.links import ACCEPT, Feed, Link, LinkServer
from tokenfleet.v1 import worker_pb2, worker_pb2_grpc

TIMEOUT_S = 20
MANY = 300


class Numbers(worker_pb2_grpc.WorkerServicer):
    """Each stream has the numbers from 0 on, so many at first and one more for each `more`."""

    def __init__(self, links: LinkServer) -> None:
        self._links = links
        self.more = asyncio.Event()
        self.open = 0
        self.ways: list[str] = []

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[worker_pb2.WatchResponse]:
        numbers = self._numbers()

        def feed(link: Link[worker_pb2.WatchResponse]) -> Feed[worker_pb2.WatchResponse]:
            return Feed(link, numbers)

        if await self._links.offer(context, worker_pb2.WatchRequest.FromString, feed):
            self.ways.append("frames")
            return
        self.ways.append("gRPC")
        async for number in numbers:
            yield number

    async def _numbers(self) -> AsyncIterator[worker_pb2.WatchResponse]:
        self.open += 1
        try:
            for number in range(1_000_000):
                if number >= MANY:
                    await self.more.wait()
                    self.more.clear()
                yield worker_pb2.WatchResponse(load=worker_pb2.LoadSample(sequence=number))
        finally:
            self.open -= 1


class Follower:
    """Keeps what it was told. `refuses`: a number that it cannot take, once."""

    def __init__(self, target: str, refuses: int = -1) -> None:
        self.numbers: list[int] = []
        self.broken: list[FleetError] = []
        self._refuses = refuses
        self._told = asyncio.Condition()

        def watch(channel: Any, metadata: Any = ()) -> Any:
            return worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchRequest(), metadata=metadata)

        self.follower: StreamFollower[worker_pb2.WatchResponse] = StreamFollower(
            target,
            "worker",
            lambda channel: aiter(watch(channel)),
            self._received,
            self.broken.append,
            Framed(lambda channel: watch(channel, ACCEPT), worker_pb2.WatchResponse.FromString),
        )

    def _received(self, response: worker_pb2.WatchResponse) -> None:
        if response.load.sequence == self._refuses:
            self._refuses = -1
            raise Resubscribe("once more")
        self.numbers.append(response.load.sequence)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.numbers) < count:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(*, frames: bool = True) -> AsyncIterator[tuple[str, Numbers, LinkServer]]:
    links = LinkServer()
    numbers = Numbers(links)  # type: ignore[abstract]
    async with served(numbers, links, frames=frames) as target:
        yield target, numbers, links


async def until_closed(numbers: Numbers) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while numbers.open:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("frames", [True, False])
async def test_everything_arrives_in_order_whichever_way_it_comes(frames: bool) -> None:
    async with serving(frames=frames) as (target, numbers, links):
        follower = Follower(target)
        follower.follower.start()
        await follower.until(MANY)
        numbers.more.set()
        await follower.until(MANY + 1)
        assert follower.numbers == list(range(MANY + 1))
        assert numbers.ways == ["frames" if frames else "gRPC"]
        assert len(links.connections) == frames
        await follower.follower.stop()
        await until_closed(numbers)
        assert not follower.broken


async def test_what_cannot_be_taken_opens_the_stream_anew() -> None:
    async with serving() as (target, numbers, _):
        follower = Follower(target, refuses=7)
        follower.follower.start()
        await follower.until(7 + MANY)
        assert follower.numbers == [*range(7), *range(MANY)]
        assert [error.message for error in follower.broken] == ["once more"]
        assert numbers.open == 1, "nothing is left of the first stream"
        await follower.follower.stop()


async def test_a_server_that_closes_its_frames_is_followed_again() -> None:
    async with serving() as (target, numbers, links):
        follower = Follower(target)
        follower.follower.start()
        await follower.until(MANY)
        for connection in tuple(links.connections):
            connection.abort()
        await follower.until(2 * MANY)
        assert numbers.ways == ["frames", "frames"]
        assert len(follower.broken) == 1
        await follower.follower.stop()


async def test_frames_that_cannot_be_reached_are_done_without_for_once() -> None:
    async with serving() as (target, numbers, links):
        links.port, port = 1, links.port  # nobody listens there
        follower = Follower(target, refuses=MANY)
        follower.follower.start()
        await follower.until(MANY)
        assert numbers.ways == ["frames", "gRPC"]
        assert [target in error.message for error in follower.broken] == [True]
        links.port = port
        numbers.more.set()
        await follower.until(2 * MANY)
        assert numbers.ways == ["frames", "gRPC", "frames"]
        await follower.follower.stop()


async def test_between_processes_with_certificates_frames_are_encrypted_too(tmp_path: Path) -> None:
    with being(identity_of(tmp_path / "worker", "worker", Authority())):
        async with serving() as (target, numbers, links):
            follower = Follower(target)
            follower.follower.start()
            await follower.until(MANY)
            assert numbers.ways == ["frames"]
            (connection,) = links.connections
            assert connection._transport is not None
            assert connection._transport.get_extra_info("ssl_object") is not None
            await follower.follower.stop()
            await until_closed(numbers)
