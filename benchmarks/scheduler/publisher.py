"""`python -m benchmarks.scheduler.publisher COUNT`: so many workers in one process, each at its own address.

Each serves the real `Watch` over a real connection, of frames where that is asked for, as workers do: it
introduces itself and then sends a load sample, as of a busy worker, at the interval that is asked for. The
samples are packed in advance: what they cost is to be seen in whoever receives them. Prints the addresses,
then serves until its input ends.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from benchmarks.scheduler.decisions import MODEL
from benchmarks.scheduler.watching import packed_sample
from tokenfleet.runtime.links import Feed, Link, LinkServer
from tokenfleet.v1 import worker_pb2

DIFFERENT = 64  # samples; they differ from one to the next, as far as a receiver can tell


class Packed:
    """Takes the place of a message."""

    def __init__(self, body: bytes) -> None:
        self.SerializeToString = lambda: body


class Watched:
    """One worker's `Watch`."""

    def __init__(self, number: int, samples: Sequence[bytes], links: LinkServer) -> None:
        self._number = number
        self._samples = samples
        self._links = links

    async def watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        interval_s = worker_pb2.WatchRequest.FromString(request).min_interval_ms / 1000
        responses = self._responses(interval_s)

        def feed(link: Link[Any]) -> Feed[Any]:
            return Feed(link, (Packed(response) async for response in responses))

        if await self._links.offer(context, worker_pb2.WatchRequest.FromString, feed):
            return
        async for response in responses:
            yield response

    async def _responses(self, interval_s: float) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        yield self._introduction().SerializeToString()
        due = loop.time() + interval_s * random.random()
        sent = self._number
        while True:
            await asyncio.sleep(due - loop.time())
            yield self._samples[sent % len(self._samples)]
            sent += 1
            due += interval_s

    def _introduction(self) -> worker_pb2.WatchResponse:
        resident = worker_pb2.ResidentModel(
            model=MODEL,
            state=worker_pb2.ResidentModel.STATE_READY,
            residency_epoch=1,
            max_sequences=4096,
            kv_blocks_total=1_000_000,
            block_size=16,
        )
        info = worker_pb2.WorkerInfo(
            worker_id=f"w{self._number}.1",
            name=f"w{self._number}",
            state=worker_pb2.WORKER_STATE_READY,
            engines=["sim"],
            models=[resident],
        )
        return worker_pb2.WatchResponse(info=info)


async def publish(count: int) -> None:
    drawn = random.Random(1)
    samples = [packed_sample(drawn) for _ in range(DIFFERENT)]
    servers = [grpc.aio.server() for _ in range(count)]
    links = LinkServer()
    await links.start_frames("127.0.0.1:0")
    addresses = []
    for number, server in enumerate(servers):
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(
            Watched(number, samples, links).watch
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("tokenfleet.v1.Worker", {"Watch": handler}),)
        )
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
    print(",".join(addresses), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await links.stop()
    await asyncio.gather(*(server.stop(0) for server in servers))


if __name__ == "__main__":
    asyncio.run(publish(int(sys.argv[1])))
