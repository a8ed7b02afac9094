"""A real router process between scripted workers, a scripted model-loader and a gateway's stream."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.contract.scripted_worker import ScriptedWorker, until
from tests.contract.service_process import ServiceProcess, running
from tokenfleet.runtime.grpc_host import GrpcHost, open_channel
from tokenfleet.runtime.links import Link, dial
from tokenfleet.runtime.roles import ROUTER
from tokenfleet.v1 import (
    common_pb2,
    model_loader_pb2,
    model_loader_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    worker_pb2,
)

METHOD = "/tokenfleet.v1.Router/Schedule"
MODEL = "letters"
COLD = "cold"
Ready = common_pb2.LoadProgress.STAGE_READY


_Base = model_loader_pb2_grpc.ModelLoaderServicer


class Loader(_Base):
    """A catalog of two models; each EnsureLoaded call is carried on by the test through a queue."""

    def __init__(self) -> None:
        self.calls: list[model_loader_pb2.EnsureLoadedRequest] = []
        self.progress: asyncio.Queue[common_pb2.LoadProgress] = asyncio.Queue()

    # what no test calls stays unimplemented
    Unload, ListResidency, Pin = _Base.Unload, _Base.ListResidency, _Base.Pin
    AddModel, RemoveModel = _Base.AddModel, _Base.RemoveModel

    async def WatchCatalog(
        self, request: model_loader_pb2.WatchCatalogRequest, context: Any
    ) -> AsyncIterator[model_loader_pb2.WatchCatalogResponse]:
        engines = [common_pb2.ModelSpec.EngineConfig(engine="sim")]
        models = [common_pb2.ModelSpec(name=name, engines=engines) for name in (MODEL, COLD)]
        yield model_loader_pb2.WatchCatalogResponse(models=models, revision=1)
        await asyncio.Event().wait()

    async def EnsureLoaded(
        self, request: model_loader_pb2.EnsureLoadedRequest, context: Any
    ) -> AsyncIterator[model_loader_pb2.EnsureLoadedResponse]:
        self.calls.append(request)
        while True:
            progress = await self.progress.get()
            yield model_loader_pb2.EnsureLoadedResponse(progress=progress)
            if progress.stage in (Ready, common_pb2.LoadProgress.STAGE_FAILED):
                return


class Gateway:
    """One `Schedule` stream; keeps every decision."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self.decisions: dict[int, list[router_pb2.Decision]] = {}
        self.messages = 0
        self.ended = asyncio.Event()
        self.link: Link[router_pb2.ScheduleRequest] | None = None

    async def connect(self, address: str, *, frames: bool) -> None:
        self.link = await dial(
            address,
            METHOD,
            router_pb2.ScheduleRequest,
            router_pb2.ScheduleResponse.FromString,
            lambda link: self,
            frames=frames,
        )
        self.send(gateway_id="gateway-test")

    def send(self, **fields: Any) -> None:
        assert self.link is not None
        self.link.send(router_pb2.ScheduleRequest(**fields))

    def ask(
        self, count: int = 1, *, model: str = MODEL, deadline_s: float = 30.0, **fields: Any
    ) -> list[int]:
        """Asks in one message; answers the ids."""
        context = {"tenant": "t", "deadline_ms": round(deadline_s * 1000), **fields.pop("context", {})}
        ids = list(itertools.islice(self._ids, count))
        asks = [
            router_pb2.Ask(
                ask_id=ask_id,
                model=model,
                context=common_pb2.RequestContext(**{"request_id": f"request-{ask_id}", **context}),
                **{"attempt": 1, **fields},
            )
            for ask_id in ids
        ]
        self.send(asks=asks)
        return ids

    def release(self, ask_id: int, outcome: Any = router_pb2.Release.OUTCOME_FINISHED, **fields: Any) -> None:
        self.send(releases=[router_pb2.Release(ask_id=ask_id, outcome=outcome, **fields)])

    async def answer(self, ask_id: int) -> router_pb2.Decision:
        """The placement or failure."""
        await until(lambda: self._last(ask_id) and not self._last(ask_id).HasField("waiting"))
        decision: router_pb2.Decision = self._last(ask_id)
        return decision

    async def placed(self, **fields: Any) -> router_pb2.Placement:
        (ask_id,) = self.ask(**fields)
        decision = await self.answer(ask_id)
        assert decision.HasField("placement"), decision
        return decision.placement

    async def waits(self, ask_id: int) -> None:
        await until(lambda: self._last(ask_id) and self._last(ask_id).HasField("waiting"))

    def received(self, messages: Sequence[router_pb2.ScheduleResponse]) -> None:
        for message in messages:
            self.messages += 1
            for decision in message.decisions:
                self.decisions.setdefault(decision.ask_id, []).append(decision)

    def writable_again(self) -> None: ...

    def closed(self, cause: str) -> None:
        self.ended.set()

    def _last(self, ask_id: int) -> Any:
        return self.decisions[ask_id][-1] if ask_id in self.decisions else None


@dataclass
class Harness:
    router: ServiceProcess
    loader: Loader
    workers: list[ScriptedWorker]
    gateway: Gateway

    async def views(self) -> dict[str, router_pb2.WorkerView]:
        """The workers as the router sees them now, by address."""
        async with open_channel(self.router.address, ROUTER) as channel:
            stub = router_pb2_grpc.RouterStub(channel)
            response = await stub.ListWorkers(router_pb2.ListWorkersRequest())
        return {view.endpoint: view for view in response.workers}

    async def knows(
        self, worker: ScriptedWorker, condition: Callable[[router_pb2.WorkerView], object]
    ) -> None:
        """Waits until the router has taken in what the worker said."""
        async with asyncio.timeout(10):
            while not condition((await self.views())[worker.target]):
                await asyncio.sleep(0.01)

    async def sample(self, worker: ScriptedWorker, running: int, **more: int) -> None:
        """The worker says how many sequences run, and the router knows it."""
        worker.sample(MODEL, running=running, **more)  # type: ignore[arg-type]
        await self.knows(worker, lambda view: [load.running for load in view.load.models] == [running])

    async def becomes(self, worker: ScriptedWorker, state: worker_pb2.WorkerState.ValueType) -> None:
        """The worker says its state, and the router knows it."""
        worker.becomes(state)
        await self.knows(worker, lambda view: view.info.state == state)


@asynccontextmanager
async def router_between(
    workers: Sequence[ScriptedWorker],
    *flags: str,
    frames: bool = True,
    held: bool = True,
    loader_away: bool = False,
    named: str | None = None,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Harness]:
    """`held`: the workers hold the model from the start, and the router knows it, unless it has to find them.

    `named`: what the router is told of them instead of their addresses.
    """
    async with AsyncExitStack() as stack:
        loader = Loader()
        host = GrpcHost(
            "tokenfleet.v1.ModelLoader",
            lambda server: model_loader_pb2_grpc.add_ModelLoaderServicer_to_server(loader, server),
            listen="127.0.0.1:0",
        )
        target = f"127.0.0.1:{await host.start()}"
        if loader_away:
            await host.stop(0)
        stack.push_async_callback(host.stop, 0)
        for worker in workers:
            await worker.start()
            stack.push_async_callback(worker.die)
            if held:
                worker.holds(MODEL)
        targets = named or ",".join(worker.target for worker in workers)
        router = await stack.enter_async_context(
            running("router", "--loader", target, "--workers", targets, *flags, env=env)
        )
        if not loader_away and not named:
            await router.ready("tokenfleet.v1.Router")
        if not named:
            await router.logged("worker connected", len(workers))
        gateway = Gateway()
        await gateway.connect(router.address, frames=frames)
        assert gateway.link is not None
        stack.callback(gateway.link.close)
        yield Harness(router, loader, list(workers), gateway)
