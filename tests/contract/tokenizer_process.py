"""A real tokenizer process, the loader that gives it a catalog, and a gateway's end of the stream."""

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from grpc_health.v1 import health_pb2

from tokenfleet.runtime.grpc_host import GrpcHost, open_channel
from tokenfleet.runtime.links import Link, dial
from tokenfleet.runtime.roles import TOKENIZER
from tokenfleet.v1 import common_pb2, model_loader_pb2, model_loader_pb2_grpc, tokenizer_pb2

METHOD = "/tokenfleet.v1.Tokenizer/Encode"
SERVICE = "tokenfleet.v1.Tokenizer"


class Loader(model_loader_pb2_grpc.ModelLoaderServicer):
    """Gives out a catalog, and again whenever a test changes it."""

    def __init__(self, models: Sequence[common_pb2.ModelSpec]) -> None:
        self._models = list(models)
        self._revision = 1
        self._changed = asyncio.Condition()

    async def change(self, models: Sequence[common_pb2.ModelSpec]) -> None:
        async with self._changed:
            self._models = list(models)
            self._revision += 1
            self._changed.notify_all()

    async def WatchCatalog(
        self, request: model_loader_pb2.WatchCatalogRequest, context: Any
    ) -> AsyncIterator[model_loader_pb2.WatchCatalogResponse]:
        seen = 0
        while True:
            async with self._changed:
                while self._revision == seen:
                    await self._changed.wait()
                seen = self._revision
                answer = model_loader_pb2.WatchCatalogResponse(models=self._models, revision=seen)
            yield answer


@asynccontextmanager
async def serving_loader(models: Sequence[common_pb2.ModelSpec]) -> AsyncIterator[tuple[Loader, str]]:
    loader = Loader(models)  # type: ignore[abstract]
    host = GrpcHost(
        "tokenfleet.v1.ModelLoader",
        lambda server: model_loader_pb2_grpc.add_ModelLoaderServicer_to_server(loader, server),
        listen="127.0.0.1:0",
    )
    port = await host.start()
    try:
        yield loader, f"127.0.0.1:{port}"
    finally:
        await host.stop(0)


class TokenizerProcess:
    """`python -m tokenfleet.tokenizer`, its log, and where it listens."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self.address = ""
        self._reading = asyncio.create_task(self._read())
        self._logged = asyncio.Condition()

    async def logged(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Waits until the log has so many records of the event."""
        async with asyncio.timeout(60), self._logged:
            await self._logged.wait_for(lambda: len(self._records(event)) >= count or self._reading.done())
        found = self._records(event)
        assert len(found) >= count, f"the process ended without {event!r}: {self.log}"
        return found

    async def ready(self) -> None:
        async with open_channel(self.address, TOKENIZER) as channel, asyncio.timeout(60):
            watch = channel.unary_stream(
                "/grpc.health.v1.Health/Watch",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            call = watch(health_pb2.HealthCheckRequest(service=SERVICE))
            async for answer in call:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    call.cancel()
                    return

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(30):
            code = await self.process.wait()
            await self._reading
        return code

    def _records(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.log if record.get("event") == event]

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            text = line.decode()
            async with self._logged:
                self.log.append(json.loads(text) if text.startswith("{") else {"event": text})
                self._logged.notify_all()
        async with self._logged:
            self._logged.notify_all()


@asynccontextmanager
async def tokenizer_process(loader: str, *flags: str) -> AsyncIterator[TokenizerProcess]:
    """Serving, not necessarily ready."""
    command = ["-m", "tokenfleet.tokenizer", "--listen", "127.0.0.1:0", "--loader", loader]
    command += ["--log-format", "json", *flags]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    tokenizer = TokenizerProcess(process)
    try:
        (serving, *_) = await tokenizer.logged("serving")
        tokenizer.address = f"127.0.0.1:{serving['grpc']}"
        yield tokenizer
    finally:
        await tokenizer.stop()


class Gateway:
    """One `Encode` stream."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tokenizer_pb2.EncodeResult]] = {}
        self.responses = 0
        self.link: Link[tokenizer_pb2.EncodeRequest] | None = None

    async def connect(self, address: str, *, frames: bool) -> None:
        self.link = await dial(
            address,
            METHOD,
            tokenizer_pb2.EncodeRequest,
            tokenizer_pb2.EncodeResponse.FromString,
            lambda link: self,
            frames=frames,
        )

    async def encode(self, *jobs: tokenizer_pb2.EncodeJob) -> list[tokenizer_pb2.EncodeResult]:
        """Sends the jobs in one message and waits for all results, in the order of the jobs."""
        assert self.link is not None
        loop = asyncio.get_running_loop()
        answers = []
        for job in jobs:
            job.job_id = next(self._ids)
            answers.append(loop.create_future())
            self._waiting[job.job_id] = answers[-1]
        self.link.send(tokenizer_pb2.EncodeRequest(jobs=jobs))
        async with asyncio.timeout(30):
            return list(await asyncio.gather(*answers))

    async def one(self, job: tokenizer_pb2.EncodeJob) -> tokenizer_pb2.EncodeResult:
        (result,) = await self.encode(job)
        return result

    def received(self, messages: Sequence[tokenizer_pb2.EncodeResponse]) -> None:
        for message in messages:
            self.responses += 1
            for result in message.results:
                self._waiting.pop(result.job_id).set_result(result)

    def writable_again(self) -> None: ...

    def closed(self, cause: str) -> None:
        for answer in self._waiting.values():
            answer.cancel(cause)


@asynccontextmanager
async def gateway(address: str, *, frames: bool) -> AsyncIterator[Gateway]:
    connected = Gateway()
    await connected.connect(address, frames=frames)
    assert connected.link is not None
    try:
        yield connected
    finally:
        connected.link.close()
