"""A tokenizer process of its own, the catalog that it wants, and a gateway's end of the link to it."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from benchmarks.gateway.systems import DIGEST, SOURCE
from tokenfleet.runtime.grpc_host import GrpcHost
from tokenfleet.runtime.links import Link, dial
from tokenfleet.v1 import common_pb2, model_loader_pb2, model_loader_pb2_grpc, tokenizer_pb2

MODEL = "smollm2"
METHOD = "/tokenfleet.v1.Tokenizer/Encode"
START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0


class TokenizerFailed(Exception):
    """The process did not start, or did not answer."""


class Tokenizer:
    """The link to the process under measurement."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tokenizer_pb2.EncodeResult]] = {}
        self.link: Link[tokenizer_pb2.EncodeRequest] | None = None

    async def encode(self, jobs: Sequence[tokenizer_pb2.EncodeJob]) -> list[tokenizer_pb2.EncodeResult]:
        """Sends the jobs in one message; the results in their order. Raises TokenizerFailed."""
        assert self.link is not None
        loop = asyncio.get_running_loop()
        answers = []
        for job in jobs:
            job.job_id = next(self._ids)
            answers.append(loop.create_future())
            self._waiting[job.job_id] = answers[-1]
        self.link.send(tokenizer_pb2.EncodeRequest(jobs=jobs))
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            results = await asyncio.gather(*answers)
        for result in results:
            if result.HasField("failure"):
                raise TokenizerFailed(result.failure.message)
        return results

    def received(self, messages: Sequence[tokenizer_pb2.EncodeResponse]) -> None:
        for message in messages:
            for result in message.results:
                self._waiting.pop(result.job_id).set_result(result)

    def writable_again(self) -> None: ...

    def closed(self, cause: str) -> None:
        for answer in self._waiting.values():
            answer.set_exception(TokenizerFailed(cause))


@asynccontextmanager
async def tokenizer(core: int, *flags: str) -> AsyncIterator[Tokenizer]:
    """A process on that core, ready to encode for `MODEL`. Raises TokenizerFailed."""
    async with _catalog() as loader:
        process = await asyncio.create_subprocess_exec(
            *("taskset", "-c", str(core), sys.executable, "-m", "tokenfleet.tokenizer"),
            *("--listen", "127.0.0.1:0", "--loader", loader, "--log-format", "json", *flags),
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        reading: asyncio.Task[None] | None = None
        try:
            started = Tokenizer(process.pid)
            async with asyncio.timeout(START_TIMEOUT_S):
                port = await _logged(process.stderr, "serving")
                await _logged(process.stderr, "ready")
                reading = asyncio.create_task(_drain(process.stderr))
                started.link = await dial(
                    f"127.0.0.1:{port['grpc']}",
                    METHOD,
                    tokenizer_pb2.EncodeRequest,
                    tokenizer_pb2.EncodeResponse.FromString,
                    lambda link: started,
                )
            yield started
            started.link.close()
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            if reading is not None:
                await reading


async def _logged(log: asyncio.StreamReader, event: str) -> dict[str, Any]:
    said = ""
    async for line in log:
        said = line.decode()
        with suppress(ValueError):
            record: dict[str, Any] = json.loads(said)
            if record.get("event") == event:
                return record
    raise TokenizerFailed(f"the tokenizer ended before {event!r}: {said}")


async def _drain(log: asyncio.StreamReader) -> None:
    async for _ in log:
        pass


class _Loader(model_loader_pb2_grpc.ModelLoaderServicer):
    """Gives out the one model, for as long as it is asked."""

    async def WatchCatalog(
        self, request: model_loader_pb2.WatchCatalogRequest, context: Any
    ) -> AsyncIterator[model_loader_pb2.WatchCatalogResponse]:
        model = common_pb2.ModelSpec(
            name=MODEL,
            source=SOURCE,
            digest=DIGEST,
            context_length=8192,
            block_size=16,
            policy=common_pb2.ModelSpec.POLICY_WARM,
        )
        yield model_loader_pb2.WatchCatalogResponse(models=[model], revision=1)
        await asyncio.Event().wait()


@asynccontextmanager
async def _catalog() -> AsyncIterator[str]:
    host = GrpcHost(
        "tokenfleet.v1.ModelLoader",
        lambda server: model_loader_pb2_grpc.add_ModelLoaderServicer_to_server(
            _Loader(),  # type: ignore[abstract]
            server,
        ),
        listen="127.0.0.1:0",
    )
    port = await host.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await host.stop(0)
