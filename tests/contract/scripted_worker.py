"""A worker that says what a test tells it to say, over the wire."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from tokenfleet.runtime.errors import FleetError, abort
from tokenfleet.runtime.grpc_host import GrpcHost
from tokenfleet.v1 import common_pb2, worker_pb2, worker_pb2_grpc

Resident = worker_pb2.ResidentModel
Stage = common_pb2.LoadProgress
REPEAT_S = 0.5
BLOCK_SIZE = 16  # tokens


class ScriptedWorker(worker_pb2_grpc.WorkerServicer):
    """Streams samples to whoever watches, repeating the last one; loads models as told."""

    def __init__(
        self, name: str, *, zone: str = "", engines: Iterable[str] = ("sim",), slots: int = 4
    ) -> None:
        self.name = name
        self.lives = 0
        self.target = ""
        self.slots = slots
        self.info = worker_pb2.WorkerInfo(
            name=name, zone=zone, engines=engines, state=worker_pb2.WORKER_STATE_READY
        )
        self.loads: list[worker_pb2.LoadModelRequest] = []  # all LoadModel calls
        self.unloads: list[worker_pb2.UnloadModelRequest] = []
        self.watches = 0
        self.load_failure: common_pb2.Failure | None = None
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.accelerator = worker_pb2.Accelerator(kind="cpu", count=1)
        self._samples: dict[str, worker_pb2.LoadSample.ModelLoad] = {}
        self._sequence = 0
        self._watchers: set[asyncio.Queue[worker_pb2.WatchResponse | None]] = set()
        self._host: GrpcHost | None = None

    @property
    def worker_id(self) -> str:
        return self.info.worker_id

    async def start(self) -> None:
        """A new life at the same address."""
        self.lives += 1
        self.info.worker_id = f"{self.name}-{self.lives}"
        self.info.ClearField("models")
        self._samples.clear()
        self._host = GrpcHost(
            "tokenfleet.v1.Worker",
            lambda server: worker_pb2_grpc.add_WorkerServicer_to_server(self, server),
            listen=self.target or "127.0.0.1:0",
        )
        self.target = f"127.0.0.1:{await self._host.start()}"

    async def die(self) -> None:
        """All connections break, nobody listens any more."""
        if self._host is not None:
            host, self._host = self._host, None
            self.break_watches()
            await host.stop(0)

    def holds(self, model: str, state: Any = Resident.STATE_READY, epoch: int = 1) -> None:
        """From now on the worker holds the model in that state, and says so."""
        for resident in tuple(self.info.models):
            if resident.model == model:
                self.info.models.remove(resident)
        self.info.models.append(
            Resident(
                model=model,
                state=state,
                residency_epoch=epoch,
                max_sequences=self.slots - 1,
                block_size=BLOCK_SIZE,
                features=["cache_events"],
            )
        )
        self.tell()

    def becomes(self, state: worker_pb2.WorkerState.ValueType) -> None:
        self.info.state = state
        self.tell()

    def sample(
        self,
        model: str,
        running: int = 0,
        waiting: int = 0,
        admitted: Iterable[str] = (),
        queued_prefill_tokens: int = 0,
    ) -> None:
        """A load sample, now."""
        self._samples[model] = worker_pb2.LoadSample.ModelLoad(
            model=model, running=running, waiting=waiting, queued_prefill_tokens=queued_prefill_tokens
        )
        self._say(worker_pb2.WatchResponse(load=self._load(admitted)))

    def tell(self) -> None:
        self._say(worker_pb2.WatchResponse(info=self.info))

    def caches(self, model: str, hashes: Iterable[int], sequence: int) -> None:
        """A change of the prefix cache, told with that number."""
        event = worker_pb2.CacheEvent(sequence=sequence, model=model, stored=hashes)
        self._say(worker_pb2.WatchResponse(cache_events=[event]))

    def holds_cached(self, model: str, hashes: Iterable[int], sequence: int) -> None:
        """The whole of a prefix cache, true for that number."""
        snapshot = worker_pb2.CacheSnapshot(model=model, hashes=hashes, last=True, sequence=sequence)
        self._say(worker_pb2.WatchResponse(cache_snapshot=snapshot))

    def break_watches(self) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(None)

    async def Watch(
        self, request: worker_pb2.WatchRequest, context: Any
    ) -> AsyncIterator[worker_pb2.WatchResponse]:
        self.watches += 1
        queue: asyncio.Queue[worker_pb2.WatchResponse | None] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            yield worker_pb2.WatchResponse(info=self.info, load=self._load())
            while True:
                try:
                    async with asyncio.timeout(REPEAT_S):
                        response = await queue.get()
                except TimeoutError:
                    response = worker_pb2.WatchResponse(load=self._load())
                if response is None:
                    return
                yield response
        finally:
            self._watchers.discard(queue)

    async def LoadModel(
        self, request: worker_pb2.LoadModelRequest, context: Any
    ) -> AsyncIterator[worker_pb2.LoadModelResponse]:
        self.loads.append(request)
        model = request.spec.name
        epoch = len(self.loads)
        self.holds(model, Resident.STATE_LOADING, epoch)
        for done in (0, 50):
            progress = Stage(
                model=model,
                worker_id=self.worker_id,
                stage=Stage.STAGE_FETCHING,
                bytes_done=done,
                bytes_total=100,
            )
            yield worker_pb2.LoadModelResponse(progress=progress)
        await self.may_load.wait()
        if self.load_failure is not None:
            self.holds(model, Resident.STATE_FAILED, epoch)
            progress = Stage(model=model, stage=Stage.STAGE_FAILED, failure=self.load_failure)
            yield worker_pb2.LoadModelResponse(progress=progress)
            return
        self.holds(model, Resident.STATE_READY, epoch)
        progress = Stage(model=model, worker_id=self.worker_id, stage=Stage.STAGE_READY)
        yield worker_pb2.LoadModelResponse(progress=progress, residency_epoch=epoch)

    # what no test calls stays unimplemented
    Serve = worker_pb2_grpc.WorkerServicer.Serve
    Drain = worker_pb2_grpc.WorkerServicer.Drain

    async def UnloadModel(
        self, request: worker_pb2.UnloadModelRequest, context: Any
    ) -> AsyncIterator[worker_pb2.UnloadModelResponse]:
        self.unloads.append(request)
        if request.if_idle and self._samples.get(request.model) and self._samples[request.model].running:
            await abort(context, FleetError(common_pb2.REASON_BUSY, "sequences run"))
        for resident in tuple(self.info.models):
            if resident.model == request.model:
                self.info.models.remove(resident)
        self.tell()
        yield worker_pb2.UnloadModelResponse(
            stage=worker_pb2.UnloadModelResponse.STAGE_UNLOADED, freed_bytes=1000
        )

    def _load(self, admitted: Iterable[str] = ()) -> worker_pb2.LoadSample:
        self._sequence += 1
        return worker_pb2.LoadSample(
            sequence=self._sequence,
            models=self._samples.values(),
            admitted_ids=admitted,
            accelerator=self.accelerator,
        )

    def _say(self, response: worker_pb2.WatchResponse) -> None:
        copy = worker_pb2.WatchResponse()
        copy.CopyFrom(response)
        for watcher in self._watchers:
            watcher.put_nowait(copy)


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Waits for something that another process brings about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
