import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2

from tokenfleet.runtime import following
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.following import StreamFollower
from tokenfleet.runtime.grpc_host import GrpcHost

TIMEOUT_S = 20


class Streams:
    """Streams that give nothing and never end, and how many of them are open."""

    def __init__(self) -> None:
        self.open = 0
        self.opened = asyncio.Event()
        self.broken: list[FleetError] = []

    def follower(self, target: str) -> StreamFollower[int]:
        return StreamFollower(target, "worker", self._stream, lambda item: None, self.broken.append)

    async def _stream(self, channel: grpc.aio.Channel) -> AsyncIterator[int]:
        del channel
        self.open += 1
        self.opened.set()
        try:
            await asyncio.Event().wait()
            yield 0
        finally:
            self.open -= 1


@pytest.fixture
async def streams() -> Streams:
    return Streams()


async def restart(follower: StreamFollower[int]) -> None:
    await follower.stop()
    follower.start()


async def test_whoever_restarts_it_at_once_it_is_followed_once(streams: Streams) -> None:
    follower = streams.follower("127.0.0.1:1")
    follower.start()
    await streams.opened.wait()
    await asyncio.gather(*(restart(follower) for _ in range(5)))
    for _ in range(100):  # turns of the event loop: enough for every stream that was ever begun
        await asyncio.sleep(0)
    assert streams.open == 1
    await follower.stop()
    assert streams.open == 0


async def test_a_lost_peer_is_called_again_only_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LONGEST_PAUSE_S", 0.1)
    broken: asyncio.Queue[FleetError] = asyncio.Queue()
    answered = asyncio.Event()
    calls = 0

    async def call(channel: grpc.aio.Channel) -> AsyncIterator[object]:
        nonlocal calls
        calls += 1
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        yield await check(health_pb2.HealthCheckRequest())

    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{reserved.getsockname()[1]}"
        follower = StreamFollower(target, "worker", call, lambda item: answered.set(), broken.put_nowait)
        follower.start()
        for _ in range(4):
            error = await asyncio.wait_for(broken.get(), TIMEOUT_S)
    assert f"cannot reach {target}" in error.message
    assert calls == 1
    host = GrpcHost("test", lambda server: None, listen=target, reflection=False)
    await host.start()
    await asyncio.wait_for(answered.wait(), TIMEOUT_S)
    await follower.stop()
    await host.stop(0)
