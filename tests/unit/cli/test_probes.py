"""Health as a condition: what the supervisor is told when a server appears, becomes ready, and goes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tokenfleet.cli.local_fleet.ports import PortReservation
from tokenfleet.cli.local_fleet.probes import GrpcHealth, StorePing

SERVICE = "tokenfleet.v1.Router"
SERVING = health_pb2.HealthCheckResponse.SERVING


async def serve(port: int) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await servicer.set("", SERVING)
    return server, servicer


async def until(probe: AsyncIterator[bool], wanted: bool) -> None:
    async with asyncio.timeout(10):
        while await anext(probe) is not wanted:
            pass


async def test_grpc_health_from_before_the_start_to_a_second_life() -> None:
    reservation = PortReservation()
    (port,) = reservation.take(1)
    probe = aiter(GrpcHealth(f"127.0.0.1:{port}", SERVICE).follow())
    first = asyncio.ensure_future(anext(probe))
    server, servicer = await serve(port)
    async with asyncio.timeout(10):
        assert await first is False  # it answers, and is not ready
    await servicer.set(SERVICE, SERVING)
    await until(probe, True)
    await server.stop(0)
    await until(probe, False)
    server, servicer = await serve(port)
    await servicer.set(SERVICE, SERVING)
    await until(probe, True)
    await probe.aclose()  # type: ignore[attr-defined]
    await server.stop(0)
    reservation.release()


async def test_a_store_that_reads_its_data_is_alive_and_not_ready(tmp_path: Path) -> None:
    replies = [b"-LOADING the dataset\r\n", b"+PONG\r\n"]
    hang_up = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await reader.readline()
            writer.write(reply)
        await hang_up.wait()
        writer.close()

    path = tmp_path / "store.sock"
    probe = aiter(StorePing(path).follow())
    first = asyncio.ensure_future(anext(probe))
    server = await asyncio.start_unix_server(answer, path)
    async with asyncio.timeout(10):
        assert await first is False
        assert await anext(probe) is True
        hang_up.set()
        assert await anext(probe) is False
    await probe.aclose()  # type: ignore[attr-defined]
    server.close()
