"""Health as peers see it: live, ready, and let go when the server stops."""

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from tokenfleet.runtime.grpc_host import GrpcHost

SERVICE = "tokenfleet.v1.Router"
Status = health_pb2.HealthCheckResponse


@pytest.fixture
async def host() -> AsyncIterator[GrpcHost]:
    host = GrpcHost(SERVICE, lambda server: None, listen="127.0.0.1:0")
    await host.start()
    yield host
    await host.stop(0)


@pytest.fixture
async def channel(host: GrpcHost) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        yield channel


async def check(channel: grpc.aio.Channel, name: str) -> int:
    call = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=Status.FromString,
    )
    return (await call(health_pb2.HealthCheckRequest(service=name))).status


def watch(channel: grpc.aio.Channel, name: str) -> grpc.aio.UnaryStreamCall[Message, Status]:
    call = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=Status.FromString,
    )
    return call(health_pb2.HealthCheckRequest(service=name))


async def told(call: grpc.aio.UnaryStreamCall[Message, Status]) -> int:
    async with asyncio.timeout(5):
        reply = await call.read()
    assert isinstance(reply, Status)
    return reply.status


async def test_live_at_once_and_ready_when_told(host: GrpcHost, channel: grpc.aio.Channel) -> None:
    assert await check(channel, "") == Status.SERVING
    assert await check(channel, SERVICE) == Status.NOT_SERVING
    await host.set_ready(True)
    assert await check(channel, SERVICE) == Status.SERVING


async def test_a_name_that_is_not_served_here(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(channel, "tokenfleet.v1.Nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert await told(watch(channel, "tokenfleet.v1.Nobody")) == Status.SERVICE_UNKNOWN


async def test_a_watcher_that_leaves_does_not_silence_the_others(
    host: GrpcHost, channel: grpc.aio.Channel
) -> None:
    leaving, staying = watch(channel, SERVICE), watch(channel, SERVICE)
    assert await told(leaving) == await told(staying) == Status.NOT_SERVING
    leaving.cancel()
    await check(channel, "")  # a round trip behind the cancellation
    for ready, status in ((True, Status.SERVING), (False, Status.NOT_SERVING)):
        await host.set_ready(ready)
        assert await told(staying) == status


async def test_stopping_tells_watchers_and_does_not_wait_for_them(
    host: GrpcHost, channel: grpc.aio.Channel
) -> None:
    await host.set_ready(True)
    watching = watch(channel, SERVICE)
    assert await told(watching) == Status.SERVING
    before = time.monotonic()
    await host.stop(30)
    assert time.monotonic() - before < 10
    assert await told(watching) == Status.NOT_SERVING
    assert await watching.read() is grpc.aio.EOF
