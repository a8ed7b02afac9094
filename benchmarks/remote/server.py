"""A server of `VllmEngine` that computes nothing: each sequence gets a token a step. `PORT STEP_MS`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto import vllm_engine_pb2 as pb
from smg_grpc_proto import vllm_engine_pb2_grpc


class Servicer(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc]
    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._stepped = asyncio.Condition()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._step_s)
            async with self._stepped:
                self._stepped.notify_all()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for token in range(request.sampling_params.max_tokens):
            async with self._stepped:
                await self._stepped.wait()
            yield pb.GenerateResponse(chunk=pb.GenerateStreamChunk(token_ids=[1_000 + token % 1_000]))
        yield pb.GenerateResponse(complete=pb.GenerateComplete(finish_reason="length"))

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        return pb.GetModelInfoResponse(is_generation=True)

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        return pb.GetServerInfoResponse()

    async def GetLoads(self, request: Any, context: Any) -> Any:
        return pb.GetLoadsResponse()


class Health(health_pb2_grpc.HealthServicer):
    async def Check(self, request: Any, context: Any) -> Any:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


async def main(port: int, step_s: float) -> None:
    servicer = Servicer(step_s)
    server = grpc.aio.server()
    vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await servicer.run()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2]) / 1e3))
