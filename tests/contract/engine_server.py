"""An engine server that does what a test says, over the protocol of `smg-grpc-proto`.

Its next id is a hash of all ids before it, so that a lost, repeated or misplaced one changes all that follow.
`python -m tests.contract.engine_server PORT` serves until it is killed.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto import trtllm_service_pb2, trtllm_service_pb2_grpc, vllm_engine_pb2, vllm_engine_pb2_grpc
from smg_grpc_proto.generated import common_pb2 as smg
from xxhash import xxh3_64_intdigest

VOCABULARY = 49_152
END = 2  # the model's end token
STEP_S = 0.002


def next_id(ids: Sequence[int]) -> int:
    """An id whose token has text."""
    return 1_000 + xxh3_64_intdigest(struct.pack(f"<{len(ids)}I", *ids)) % 40_000


def answer(prompt: Sequence[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(next_id(ids))
    return ids[len(prompt) :]


@dataclass
class Script:
    """What the server does, and what it was asked. A test may change it while it serves."""

    serving: bool = True
    model: str = "small"
    vocabulary: int = VOCABULARY
    end_after: int = 0  # tokens until an answer ends by itself; 0: never
    step_s: float = STEP_S
    stuck: bool = False  # makes no more tokens
    reject_with: tuple[grpc.StatusCode, str] | None = None
    publishes: bool = False
    requests: list[Any] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    hung_up: list[str] = field(default_factory=list)
    flushes: int = 0
    subscribers: list[asyncio.Queue[smg.KvEventBatch | None]] = field(default_factory=list)
    token: str = ""  # wanted of whoever calls

    def publish(self, number: int, *events: smg.KvCacheEvent, rank: int = 0) -> None:
        for queue in self.subscribers:
            queue.put_nowait(smg.KvEventBatch(sequence_number=number, events=events, dp_rank=rank))

    async def tokens(self, request_id: str, prompt: Sequence[int], count: int) -> AsyncIterator[int]:
        """Until the count, or the end token. Notes who hung up."""
        self.running.add(request_id)
        ids = list(prompt)
        try:
            for made in range(count):
                await asyncio.sleep(self.step_s)
                while self.stuck:
                    await asyncio.sleep(self.step_s)
                ids.append(END if self.end_after and made == self.end_after else next_id(ids))
                yield ids[-1]
                if ids[-1] == END:
                    return
        except (asyncio.CancelledError, GeneratorExit):
            self.hung_up.append(request_id)
            raise
        finally:
            self.running.discard(request_id)


class Vllm(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc]
    def __init__(self, script: Script) -> None:
        self._script = script

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        script, pb = self._script, vllm_engine_pb2
        script.requests.append(request)
        if script.reject_with is not None:
            await context.abort(*script.reject_with)
        prompt, params = list(request.tokenized.input_ids), request.sampling_params
        last, reason = 0, "length"
        async for last in script.tokens(request.request_id, prompt, params.max_tokens):
            logprobs = None
            if params.HasField("logprobs"):
                top = [pb.TopLogProbs(token_ids=[last, 7], values=[-0.5, -2.0])]
                logprobs = pb.OutputLogProbs(token_ids=[last], token_logprobs=[-0.5], top_logprobs=top)
            chunk = pb.GenerateStreamChunk(
                token_ids=[last], prompt_tokens=len(prompt), cached_tokens=len(prompt) // 16 * 16
            )
            if logprobs is not None:
                chunk.output_logprobs.CopyFrom(logprobs)
            yield pb.GenerateResponse(chunk=chunk)
            reason = "stop" if last == END else "length"
        yield pb.GenerateResponse(complete=pb.GenerateComplete(output_ids=[last], finish_reason=reason))

    async def Abort(self, request: Any, context: Any) -> Any:
        self._script.aborted += request.request_ids
        return vllm_engine_pb2.AbortResponse()

    async def HealthCheck(self, request: Any, context: Any) -> Any:
        return vllm_engine_pb2.HealthCheckResponse(healthy=True)  # as the real one does while it warms up

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        script = self._script
        return vllm_engine_pb2.GetModelInfoResponse(
            model_path="/models/small",
            served_model_name=script.model,
            is_generation=True,
            vocab_size=script.vocabulary,
            max_context_length=2_048,
            eos_token_ids=[END],
        )

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        return vllm_engine_pb2.GetServerInfoResponse(model_dtype="torch.bfloat16", max_num_seqs=8)

    async def GetLoads(self, request: Any, context: Any) -> Any:
        load = vllm_engine_pb2.SchedulerLoad(
            num_running_reqs=len(self._script.running), max_total_num_tokens=32_000, max_running_requests=8
        )
        return vllm_engine_pb2.GetLoadsResponse(version="0.0.scripted", loads=[load])

    async def FlushCache(self, request: Any, context: Any) -> Any:
        self._script.flushes += 1
        return smg.FlushCacheResponse(success=True)

    async def SubscribeKvEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if not self._script.publishes:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "KV cache events not enabled")
        queue: asyncio.Queue[smg.KvEventBatch | None] = asyncio.Queue()
        self._script.subscribers.append(queue)
        try:
            await context.send_initial_metadata(())
            while (batch := await queue.get()) is not None:
                yield batch
            await context.abort(grpc.StatusCode.DATA_LOSS, "the publisher restarted its sequence")
        finally:
            self._script.subscribers.remove(queue)


class Trtllm(trtllm_service_pb2_grpc.TrtllmServiceServicer):  # type: ignore[misc]
    def __init__(self, script: Script) -> None:
        self._script = script

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        script, pb = self._script, trtllm_service_pb2
        script.requests.append(request)
        prompt = list(request.tokenized.input_token_ids)
        made: list[int] = []
        async for token in script.tokens(request.request_id, prompt, request.max_tokens):
            made.append(token)
            if len(made) == request.max_tokens:
                break  # the last one comes with the whole answer only
            chunk = pb.GenerateStreamChunk(token_ids=[token], completion_tokens=len(made), cached_tokens=5)
            if request.output_config.HasField("logprobs"):
                top = [pb.TopLogprob(token_id=token, logprob=-0.5)]
                chunk.logprobs.add(token_id=token, logprob=-0.5, top_logprobs=top)
            yield pb.GenerateResponse(request_id=request.request_id, chunk=chunk)
        reason = "stop" if made[-1] == END else "length"
        complete = pb.GenerateComplete(output_token_ids=made, finish_reason=reason, cached_tokens=5)
        yield pb.GenerateResponse(request_id=request.request_id, complete=complete)

    async def Abort(self, request: Any, context: Any) -> Any:
        self._script.aborted.append(request.request_id)
        return trtllm_service_pb2.AbortResponse(success=True)

    async def HealthCheck(self, request: Any, context: Any) -> Any:
        status = "OK" if self._script.serving else "LLM not initialized"
        return trtllm_service_pb2.HealthCheckResponse(status=status)

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        # its tokenizer's size without what was added to it, and no word of its limits
        return trtllm_service_pb2.GetModelInfoResponse(
            model_id=self._script.model, vocab_size=self._script.vocabulary - 17
        )

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        return trtllm_service_pb2.GetServerInfoResponse(version="1.2.0", backend="tensorrt-llm")


class Health(health_pb2_grpc.HealthServicer):
    def __init__(self, script: Script, service: str) -> None:
        self._script = script
        self._service = service

    async def Check(self, request: Any, context: Any) -> Any:
        if request.service not in ("", self._service):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Unknown service: {request.service}")
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if self._script.serving else status.NOT_SERVING)


class _Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Turns away whoever does not bring the token."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        brought = dict(details.invocation_metadata).get("authorization")
        if brought == f"Bearer {self._token}":
            return await continuation(details)

        async def refuse(request: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token, or a wrong one")

        return grpc.unary_unary_rpc_method_handler(refuse)


@asynccontextmanager
async def engine_server(
    script: Script,
    *,
    dialect: str = "vllm",
    port: int = 0,
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[str]:
    """The address of a server that runs meanwhile, and goes without a farewell."""
    guards = [_Guard(script.token)] if script.token else None
    server = grpc.aio.server(interceptors=guards, options=[("grpc.so_reuseport", 1)])
    if dialect == "vllm":
        vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(Vllm(script), server)
        health_pb2_grpc.add_HealthServicer_to_server(Health(script, "vllm.grpc.engine.VllmEngine"), server)
    else:
        trtllm_service_pb2_grpc.add_TrtllmServiceServicer_to_server(Trtllm(script), server)
    target = f"127.0.0.1:{port}"
    bound = server.add_secure_port(target, credentials) if credentials else server.add_insecure_port(target)
    await server.start()
    try:
        yield f"localhost:{bound}"
    finally:
        await server.stop(None)


async def main() -> None:
    async with engine_server(Script(), port=int(sys.argv[1])) as address:
        print(address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
