"""How the supervisor learns that a process lives and is ready: it is told, it does not guess.

A probe yields at least once when the process answers (it is alive), and then whenever its readiness changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import grpc

_RETRY_S = 0.05
_ANSWER_S = 5.0
_CHANNEL_OPTIONS = [
    # a process that is just starting is asked again soon, not after a growing pause
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.use_local_subchannel_pool", 1),
]


class Probe(Protocol):
    """Follows one process's health; ends only by cancellation."""

    def follow(self) -> AsyncIterator[bool]:
        """Yields readiness; the first value says that the process is alive."""


class GrpcHealth:
    """The standard health service: its Watch stream is the condition that everybody waits for."""

    def __init__(self, target: str, service: str) -> None:
        self._target = target
        self._service = service

    async def follow(self) -> AsyncIterator[bool]:
        from grpc_health.v1 import health_pb2

        request = health_pb2.HealthCheckRequest(service=self._service)
        async with grpc.aio.insecure_channel(self._target, options=_CHANNEL_OPTIONS) as channel:
            watch = channel.unary_stream(
                "/grpc.health.v1.Health/Watch",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            while True:
                answered = False
                try:
                    async for reply in watch(request, wait_for_ready=True):
                        answered = True
                        yield reply.status == health_pb2.HealthCheckResponse.SERVING
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                if answered:
                    yield False
                await asyncio.sleep(_RETRY_S)


class HttpHealth:
    """The health beside the metrics: for processes whose gRPC wants certificates that we do not have."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def follow(self) -> AsyncIterator[bool]:
        told: bool | None = None
        while True:
            ready = await self._ask()
            if ready is None and told is not None:
                ready = False  # it lived, and does not answer
            if ready is not None and ready != told:
                told = ready
                yield ready
            await asyncio.sleep(_RETRY_S)

    async def _ask(self) -> bool | None:
        """None when nobody answers."""
        host, _, port = self._address.rpartition(":")
        try:
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                try:
                    writer.write(b"GET /health/ready HTTP/1.0\r\n\r\n")
                    status = (await reader.readline()).split(b" ")
                    await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return None
        return status[1] == b"200" if len(status) > 1 else None


class StorePing:
    """A Redis-protocol server on a Unix socket: ready when it answers PING, gone when it hangs up."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def follow(self) -> AsyncIterator[bool]:
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._path))
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                while await _ping(reader, writer) != b"+PONG\r\n" and not reader.at_eof():
                    yield False  # alive, but still reading its data
                    await asyncio.sleep(_RETRY_S)
                yield not reader.at_eof()
                await reader.read()
            except ConnectionResetError:
                pass  # the same news as the end of the stream
            finally:
                writer.close()
            yield False


async def _ping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"PING\r\n")
    await writer.drain()
    return await reader.readline()
