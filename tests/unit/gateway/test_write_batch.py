"""Frames of one step reach their clients, whoever of them has just left."""

import asyncio
from typing import cast

from tokenfleet.gateway.write_batch import WriteBatch


class Accepted(asyncio.Protocol):
    def __init__(self, made: list[asyncio.Transport]) -> None:
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made.append(cast(asyncio.Transport, transport))


async def test_a_client_that_has_just_left_costs_the_others_nothing() -> None:
    made: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Accepted(made), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    while len(made) < 3:
        await asyncio.sleep(0)
    batch = WriteBatch()
    for transport in made:
        batch.add((transport, b"first"))
    made[1].abort()
    batch.flush()
    assert await clients[0][0].readexactly(5) == b"first"
    assert await clients[2][0].readexactly(5) == b"first"
    batch.add((made[2], b"again"))
    batch.flush()
    assert await clients[2][0].readexactly(5) == b"again"
    for _, writer in clients:
        writer.close()
    for transport in made:
        transport.abort()
    server.close()
    await server.wait_closed()
