"""What stands behind a gateway, played by one gRPC server and workers of their own.

Everything is deterministic and nothing takes time: a token is one byte of text, and the next id is a function
of all ids so far, so that a lost or repeated token changes everything after it.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from tests.contract.openapi import check_response
from tokenfleet.gateway.service import GatewayService
from tokenfleet.gateway.settings import GatewaySettings
from tokenfleet.runtime.errors import FleetError, abort
from tokenfleet.runtime.grpc_host import GrpcHost
from tokenfleet.runtime.lifecycle import Lifecycle
from tokenfleet.runtime.links import Link, LinkServer
from tokenfleet.v1 import (
    common_pb2,
    model_loader_pb2,
    model_loader_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)

CONTEXT = 60_000
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def next_id(ids: Sequence[int]) -> int:
    state = 7
    for token in ids:
        state = (state * 31 + token + 1) % 1_000_003
    return state % len(LETTERS)


def answer(prompt: str, tokens: int) -> str:
    """What an undisturbed fleet says to `prompt`."""
    ids = list(prompt.encode())
    start = len(ids)
    for _ in range(tokens):
        ids.append(next_id(ids))
    return "".join(LETTERS[token] for token in ids[start:])


class Tokenizer(tokenizer_pb2_grpc.TokenizerServicer):
    def __init__(self, links: LinkServer) -> None:
        self.links = links
        self.jobs: list[tokenizer_pb2.EncodeJob] = []
        self.unknown = ""  # a character that the vocabulary lacks

    async def Encode(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await self.links.serve(
            request_iterator,
            context,
            tokenizer_pb2.EncodeRequest.FromString,
            lambda link: Handler(lambda message: link.send(self._encode(message))),
        )

    def _encode(self, request: tokenizer_pb2.EncodeRequest) -> tokenizer_pb2.EncodeResponse:
        response = tokenizer_pb2.EncodeResponse()
        for job in request.jobs:
            self.jobs.append(job)
            text = job.chat.messages[-1].content if job.HasField("chat") else job.text
            if self.unknown:
                text = text.replace(self.unknown, "")
            ids = list(text.encode()) or list(job.tokens.token_ids)
            result = tokenizer_pb2.EncodeResult(job_id=job.job_id, token_count=len(ids))
            if not 0 < job.max_tokens < len(ids):
                result.token_ids.extend(ids)
            response.results.append(result)
        return response

    async def Decode(
        self, request: tokenizer_pb2.DecodeRequest, context: Any
    ) -> tokenizer_pb2.DecodeResponse:
        if any(token > 255 for token in request.token_ids):
            message = "token_ids: 256 ids are in the vocabulary"
            await abort(context, FleetError(common_pb2.REASON_INVALID_ARGUMENT, message, field="token_ids"))
        return tokenizer_pb2.DecodeResponse(text=bytes(request.token_ids).decode(errors="replace"))


def letters(name: str = "letters", **more: Any) -> common_pb2.ModelSpec:
    return common_pb2.ModelSpec(name=name, **{"context_length": CONTEXT, "block_size": 16, **more})


class Loader(model_loader_pb2_grpc.ModelLoaderServicer):
    def __init__(self, catalog: Sequence[common_pb2.ModelSpec]) -> None:
        self.catalog = catalog
        self.progress: list[model_loader_pb2.EnsureLoadedResponse] = []
        self.ordered: list[Any] = []
        self.failure: FleetError | None = None  # of every order

    async def WatchCatalog(
        self, request: model_loader_pb2.WatchCatalogRequest, context: Any
    ) -> AsyncIterator[model_loader_pb2.WatchCatalogResponse]:
        yield model_loader_pb2.WatchCatalogResponse(models=self.catalog, revision=1)
        await asyncio.Event().wait()

    async def ListResidency(
        self, request: model_loader_pb2.ListResidencyRequest, context: Any
    ) -> model_loader_pb2.ListResidencyResponse:
        places = [model_loader_pb2.ModelResidency.Place(worker_id="worker-0", state="ready")]
        residency = model_loader_pb2.ModelResidency(spec=common_pb2.ModelSpec(name="letters"), places=places)
        worker = model_loader_pb2.WorkerMemory(worker_id="worker-0", engines=["sim"], budget_bytes=100)
        return model_loader_pb2.ListResidencyResponse(models=[residency], workers=[worker])

    async def EnsureLoaded(
        self, request: model_loader_pb2.EnsureLoadedRequest, context: Any
    ) -> AsyncIterator[model_loader_pb2.EnsureLoadedResponse]:
        await self._take(request, context)
        ready = common_pb2.LoadProgress(model=request.model, stage=common_pb2.LoadProgress.STAGE_READY)
        for response in [*self.progress, model_loader_pb2.EnsureLoadedResponse(progress=ready)]:
            yield response

    async def Unload(
        self, request: model_loader_pb2.UnloadRequest, context: Any
    ) -> AsyncIterator[model_loader_pb2.UnloadResponse]:
        await self._take(request, context)
        busy = common_pb2.Failure(reason=common_pb2.REASON_BUSY, message="2 sequences run on it")
        yield model_loader_pb2.UnloadResponse(worker_id="worker-0", done=True, freed_bytes=7)
        if not request.force:
            yield model_loader_pb2.UnloadResponse(worker_id="worker-1", failure=busy)

    async def Pin(self, request: model_loader_pb2.PinRequest, context: Any) -> model_loader_pb2.PinResponse:
        await self._take(request, context)
        return model_loader_pb2.PinResponse(pinned=request.pinned)

    async def AddModel(
        self, request: model_loader_pb2.AddModelRequest, context: Any
    ) -> model_loader_pb2.AddModelResponse:
        await self._take(request, context)
        return model_loader_pb2.AddModelResponse(spec=self.catalog[0])

    async def RemoveModel(
        self, request: model_loader_pb2.RemoveModelRequest, context: Any
    ) -> model_loader_pb2.RemoveModelResponse:
        await self._take(request, context)
        return model_loader_pb2.RemoveModelResponse(revision=2)

    async def _take(self, request: Any, context: Any) -> None:
        self.ordered.append(request)
        if self.failure is not None:
            await abort(context, self.failure)


class Handler:
    """Hands each message to a function."""

    def __init__(self, take: Callable[[Any], None], on_closed: Callable[[], None] = lambda: None) -> None:
        self._take = take
        self._on_closed = on_closed

    def received(self, messages: Sequence[Any]) -> None:
        for message in messages:
            self._take(message)

    def writable_again(self) -> None: ...

    def closed(self, cause: str) -> None:
        self._on_closed()


class Router(router_pb2_grpc.RouterServicer):
    """Places on the first worker that is not excluded and not marked down."""

    def __init__(self, links: LinkServer) -> None:
        self.links = links
        self.workers: list[Worker] = []
        self.asks: list[router_pb2.Ask] = []
        self.releases: list[router_pb2.Release] = []
        self.cancels: list[int] = []
        self.failure: common_pb2.Failure | None = None
        self.failures: dict[str, common_pb2.Failure] = {}  # by model
        self.loads: dict[str, common_pb2.LoadProgress] = {}  # that asks wait for, by model
        self.silent = False
        self.features = {"logprobs", "json_schema", "min_tokens"}
        self.open_links: list[Link[Any]] = []

    async def Schedule(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        def accept(link: Link[Any]) -> Handler:
            self.open_links.append(link)
            return Handler(lambda message: self._take(message, link))

        await self.links.serve(request_iterator, context, router_pb2.ScheduleRequest.FromString, accept)

    def _take(self, request: router_pb2.ScheduleRequest, link: Link[Any]) -> None:
        self.releases += request.releases
        self.cancels += [cancel.ask_id for cancel in request.cancels]
        for ask in request.asks:
            self.asks.append(ask)
            if not self.silent:
                link.send(router_pb2.ScheduleResponse(decisions=[self.decide(ask)]))

    def decide(self, ask: router_pb2.Ask) -> router_pb2.Decision:
        if ask.model in self.failures:
            return router_pb2.Decision(ask_id=ask.ask_id, failure=self.failures[ask.model])
        if ask.model in self.loads:
            waiting = router_pb2.Waiting(load=self.loads[ask.model])
            return router_pb2.Decision(ask_id=ask.ask_id, waiting=waiting)
        if self.failure is not None:
            return router_pb2.Decision(ask_id=ask.ask_id, failure=self.failure)
        missing = set(ask.required_features) - self.features
        if missing:
            failure = common_pb2.Failure(reason=common_pb2.REASON_UNSUPPORTED, message=f"no {missing}")
            return router_pb2.Decision(ask_id=ask.ask_id, failure=failure)
        able = [worker for worker in self.workers if worker.worker_id not in ask.excluded_workers]
        if not able:
            failure = common_pb2.Failure(reason=common_pb2.REASON_NO_WORKER, message="none left")
            return router_pb2.Decision(ask_id=ask.ask_id, failure=failure)
        placement = router_pb2.Placement(
            worker_id=able[0].worker_id, endpoint=able[0].endpoint, model=ask.model, reservation_id="r"
        )
        return router_pb2.Decision(ask_id=ask.ask_id, placement=placement)


@dataclass(eq=False)
class Running:
    link: Link[Any]
    submit: worker_pb2.Submit
    ids: list[int]
    left: int
    tokens: int = 0
    chunks_left: int = 0


@dataclass(eq=False)
class Worker(worker_pb2_grpc.WorkerServicer):
    """Steps one token per sequence and loop turn; `fail` decides after each token whether to break."""

    worker_id: str
    links: LinkServer = field(default_factory=LinkServer)
    endpoint: str = ""
    fail: Callable[["Worker", Running], common_pb2.Failure | None] = lambda worker, running: None
    hold: bool = False
    longest: int = CONTEXT  # tokens of an answer
    submits: list[worker_pb2.Submit] = field(default_factory=list)
    cancels: list[worker_pb2.Cancel] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)

    async def Serve(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        def accept(link: Link[Any]) -> Handler:
            return Handler(lambda message: self._take(message, link), lambda: self._drop(link))

        await self.links.serve(request_iterator, context, worker_pb2.ServeRequest.FromString, accept)

    def break_links(self) -> None:
        for running in tuple(self.running):
            running.link.abort()

    def _take(self, request: worker_pb2.ServeRequest, link: Link[Any]) -> None:
        for submit in request.submits:
            self.submits.append(submit)
            ids = list(submit.token_ids)
            self.running.append(
                Running(
                    link, submit, ids, min(submit.max_tokens, self.longest), chunks_left=submit.pending_chunks
                )
            )
        for chunk in request.chunks:
            running = next(one for one in self.running if one.submit.slot == chunk.slot)
            running.ids += chunk.token_ids
            running.chunks_left -= 1
        for cancel in request.cancels:
            self.cancels.append(cancel)
            for running in [one for one in self.running if one.submit.slot == cancel.slot]:
                self._end(running, common_pb2.FINISH_REASON_CANCELLED)
        asyncio.get_running_loop().call_soon(self.step)

    def _drop(self, link: Link[Any]) -> None:
        self.running = [running for running in self.running if running.link is not link]

    def step(self) -> None:
        if self.hold:
            return
        for running in tuple(self.running):
            if running.chunks_left:
                continue
            if running.left == 0:
                self._end(running, common_pb2.FINISH_REASON_LENGTH)
                continue
            token = next_id(running.ids)
            running.ids.append(token)
            running.left -= 1
            running.tokens += 1
            step = worker_pb2.StepOutputs(
                slots=[running.submit.slot],
                attempts=[running.submit.attempt],
                token_counts=[1],
                texts=[LETTERS[token]],
                token_ids=[token],
            )
            if running.submit.sampling.HasField("logprobs"):
                step.logprobs.append(_logprobs(running.submit, token))
            running.link.send(worker_pb2.ServeResponse(step=step))
            failure = self.fail(self, running)
            if failure is not None:
                self._end(running, common_pb2.FINISH_REASON_FAILED, failure)
            elif running.left == 0:
                self._end(running, common_pb2.FINISH_REASON_LENGTH)
        if self.running:
            asyncio.get_running_loop().call_soon(self.step)

    def _end(self, running: Running, reason: Any, failure: common_pb2.Failure | None = None) -> None:
        if running not in self.running:
            return
        self.running.remove(running)
        terminal = worker_pb2.Terminal(
            slot=running.submit.slot, attempt=running.submit.attempt, finish_reason=reason, failure=failure
        )
        running.link.send(worker_pb2.ServeResponse(step=worker_pb2.StepOutputs(terminals=[terminal])))


@dataclass
class FakeFleet:
    http: httpx.AsyncClient
    url: str
    grpc: str  # the gateway's host:port
    lifecycle: Lifecycle  # the gateway's
    tokenizer: Tokenizer
    router: Router
    workers: list[Worker]
    loader: Loader

    async def idle(self) -> None:
        """Until nothing is left of any request: in the gateway, with the router, on the workers."""
        async with asyncio.timeout(10):
            while await self.running() or any(worker.running for worker in self.workers):
                await asyncio.sleep(0.01)
            while len(self.router.releases) + len(self.router.cancels) < len(self.router.asks):
                await asyncio.sleep(0.01)

    async def running(self) -> float:
        """Requests that the gateway is answering, as its metrics say."""
        for line in (await self.http.get("/metrics")).text.splitlines():
            if line.startswith("tokenfleet_gateway_requests_running "):
                return float(line.rpartition(" ")[2])
        raise AssertionError("the gateway does not say how many requests are running")


@asynccontextmanager
async def gateway_on_fakes(
    *,
    workers: int = 1,
    frames: bool = True,
    trusted: bytes | None = None,
    catalog: Sequence[common_pb2.ModelSpec] = (),
    **changed: Any,
) -> AsyncIterator[FakeFleet]:
    """A real gateway, in this process, on a fake fleet; `trusted` is its authority where it has TLS."""
    links = LinkServer()
    tokenizer, router = Tokenizer(links), Router(links)  # type: ignore[abstract]
    loader = Loader(catalog or [letters()])

    def register(server: Any) -> None:
        tokenizer_pb2_grpc.add_TokenizerServicer_to_server(tokenizer, server)
        router_pb2_grpc.add_RouterServicer_to_server(router, server)
        model_loader_pb2_grpc.add_ModelLoaderServicer_to_server(loader, server)

    back = GrpcHost("fake", register, listen="127.0.0.1:0")
    target = f"127.0.0.1:{await back.start()}"
    await links.start_frames("127.0.0.1:0")
    hosts = [await _serve_worker(router, f"worker-{number}") for number in range(workers)]
    settings = GatewaySettings(
        http_listen="127.0.0.1:0",
        listen="127.0.0.1:0",
        tokenizers=[target],
        routers=[target],
        loader=target,
        frames=frames,
        **{"grace_s": 1, **changed},
    )
    service = GatewayService(settings, CollectorRegistry())
    lifecycle = Lifecycle(1)
    serving = asyncio.create_task(service.run(lifecycle))
    async with asyncio.timeout(10):
        while not all(service.ready().values()):
            if serving.done():
                await serving
            await asyncio.sleep(0.01)
        await _until_healthy(f"127.0.0.1:{service.grpc_port}", trusted)
    url = f"{'https' if trusted else 'http'}://127.0.0.1:{service.http_port}"
    verify: Any = ssl.create_default_context(cadata=trusted.decode()) if trusted else True
    hooks: Any = {"response": [check_response]}
    async with httpx.AsyncClient(base_url=url, timeout=10, event_hooks=hooks, verify=verify) as client:
        grpc = f"127.0.0.1:{service.grpc_port}"
        try:
            yield FakeFleet(client, url, grpc, lifecycle, tokenizer, router, router.workers, loader)
        finally:
            lifecycle.stopping.set()
            await serving
            for host in (back, *hosts):
                await host.stop(0)
            for server in (links, *(worker.links for worker in router.workers)):
                await server.stop()


async def _until_healthy(target: str, trusted: bytes | None) -> None:
    """Until the gateway tells the world that it is ready."""
    request = health_pb2.HealthCheckRequest(service="tokenfleet.v1.Inference")
    channel = (
        grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(trusted))
        if trusted
        else grpc.aio.insecure_channel(target)
    )
    async with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        async for response in stub.Watch(request):
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                return


async def _serve_worker(router: Router, worker_id: str) -> GrpcHost:
    worker = Worker(worker_id)  # type: ignore[abstract]
    host = GrpcHost(
        "worker",
        lambda server: worker_pb2_grpc.add_WorkerServicer_to_server(worker, server),
        listen="127.0.0.1:0",
    )
    worker.endpoint = f"127.0.0.1:{await host.start()}"
    await worker.links.start_frames("127.0.0.1:0")
    router.workers.append(worker)
    return host


def _logprobs(submit: worker_pb2.Submit, token: int) -> worker_pb2.TokenLogprobs:
    """Two alternatives, whatever was asked for: engines may give more than that."""
    entry = worker_pb2.TokenLogprobs(
        slot=submit.slot, attempt=submit.attempt, token_id=token, text=LETTERS[token], logprob=-token
    )
    for text, logprob in ((LETTERS[token], -token), ("é", float("-inf"))):
        entry.top.add(text=text, logprob=logprob)
    return entry


def failing_after(tokens: int, reason: Any) -> Callable[[Worker, Running], common_pb2.Failure | None]:
    """Ends each sequence with `reason` after so many tokens on this worker."""

    def fail(_: Worker, running: Running) -> common_pb2.Failure | None:
        if running.tokens < tokens:
            return None
        return common_pb2.Failure(reason=reason, message="made to fail")

    return fail


def breaking_after(tokens: int) -> Callable[[Worker, Running], None]:
    """Breaks the connection after so many tokens."""

    def fail(worker: Worker, running: Running) -> None:
        if running.tokens == tokens:
            worker.break_links()

    return fail
