"""A worker's gRPC face in this process, with links beside it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tokenfleet.runtime.grpc_host import GrpcHost
from tokenfleet.runtime.links import LinkServer
from tokenfleet.v1 import worker_pb2_grpc


@asynccontextmanager
async def served(
    servicer: worker_pb2_grpc.WorkerServicer, links: LinkServer, *, frames: bool = True
) -> AsyncIterator[str]:
    """Where it is served; without `frames` over gRPC alone."""
    host = GrpcHost(
        "tokenfleet.v1.Worker",
        lambda server: worker_pb2_grpc.add_WorkerServicer_to_server(servicer, server),
        listen="127.0.0.1:0",
    )
    port = await host.start()
    if frames:
        await links.start_frames("127.0.0.1:0")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await links.stop()
        await host.stop(0)
