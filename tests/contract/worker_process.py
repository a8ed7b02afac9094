"""A real worker process, and a gateway's end of its stream that keeps all it was told."""

import asyncio
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests import real_model
from tokenfleet.runtime.grpc_host import open_channel
from tokenfleet.runtime.links import Link, dial
from tokenfleet.runtime.roles import WORKER
from tokenfleet.v1 import common_pb2, worker_pb2, worker_pb2_grpc

SERVE = "/tokenfleet.v1.Worker/Serve"
TIMEOUT_S = 60.0


def spec(engine: str = "sim", name: str = "m", **arguments: Any) -> common_pb2.ModelSpec:
    """The small model's entry with one engine."""
    entry = real_model.spec(name)
    encoded = {key: json.dumps(value) for key, value in arguments.items()}
    entry.engines.add(engine=engine, arguments=encoded)
    return entry


@dataclass(eq=False)
class Stream:
    """What the client got of one submit."""

    slot: int
    attempt: int
    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[worker_pb2.TokenLogprobs] = field(default_factory=list)
    terminal: worker_pb2.Terminal | None = None
    deltas: int = 0
    arrivals: list[float] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def ended(self) -> worker_pb2.Terminal:
        async with asyncio.timeout(TIMEOUT_S):
            while self.terminal is None:
                self.changed.clear()
                await self.changed.wait()
        return self.terminal

    async def tokens(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.ids) < count and self.terminal is None:
                self.changed.clear()
                await self.changed.wait()


class Gateway:
    """One `Serve` link. Fails loudly when the worker breaks a rule of the contract."""

    def __init__(self, link: Link[worker_pb2.ServeRequest]) -> None:
        self.link = link
        self.streams: dict[int, Stream] = {}
        self.messages = 0
        self.worker_id = ""
        self.draining: list[worker_pb2.Draining] = []
        self.problems: list[str] = []
        self.gone = asyncio.Event()
        self.greeted = asyncio.Event()
        self._slots = itertools.count()
        self._loop = asyncio.get_running_loop()

    def received(self, messages: Sequence[worker_pb2.ServeResponse]) -> None:
        for message in messages:
            self.messages += 1
            if message.worker_id:
                self.worker_id = message.worker_id
                self.greeted.set()
            if message.HasField("draining"):
                self.draining.append(message.draining)
            self._take(message.step)

    def writable_again(self) -> None:
        pass

    def closed(self, cause: str) -> None:
        del cause
        self.gone.set()

    def submit(
        self,
        prompt: Sequence[int],
        max_tokens: int = 16,
        *,
        generated: Sequence[int] = (),
        chunks: int = 0,
        **fields: Any,
    ) -> Stream:
        submit = self.build(prompt, max_tokens, generated=generated, **fields)
        self.link.send(worker_pb2.ServeRequest(submits=[submit]))
        return self.expect(submit)

    def build(
        self, prompt: Sequence[int], max_tokens: int = 16, *, generated: Sequence[int] = (), **fields: Any
    ) -> worker_pb2.Submit:
        sampling = fields.pop("sampling", {})
        return worker_pb2.Submit(
            **{
                "slot": next(self._slots) if "slot" not in fields else fields["slot"],
                "attempt": 1,
                "model": "m",
                "token_ids": [*prompt, *generated],
                "prompt_tokens": len(prompt),
                "max_tokens": max_tokens,
                "original_max_tokens": max_tokens + len(generated),
                "sampling": common_pb2.SamplingParams(**sampling),
                **fields,
            }
        )

    def expect(self, submit: worker_pb2.Submit) -> Stream:
        stream = self.streams[submit.slot] = Stream(submit.slot, submit.attempt)
        return stream

    def cancel(self, stream: Stream) -> None:
        cancel = worker_pb2.Cancel(slot=stream.slot, attempt=stream.attempt)
        self.link.send(worker_pb2.ServeRequest(cancels=[cancel]))

    async def complete(self, prompt: Sequence[int], max_tokens: int = 16, **fields: Any) -> Stream:
        stream = self.submit(prompt, max_tokens, **fields)
        await stream.ended()
        return stream

    def _take(self, step: worker_pb2.StepOutputs) -> None:
        start = 0
        now = self._loop.time()
        for slot, attempt, count, text in zip(
            step.slots, step.attempts, step.token_counts, step.texts, strict=True
        ):
            stream = self.streams[slot]
            if stream.terminal is not None or stream.attempt != attempt:
                self.problems.append(f"delta of slot {slot} attempt {attempt} out of place")
            stream.ids += step.token_ids[start : start + count]
            stream.text += text
            stream.deltas += 1
            stream.arrivals.append(now)
            stream.changed.set()
            start += count
        if start != len(step.token_ids):
            self.problems.append("token_counts do not add up")
        for record in step.logprobs:
            self.streams[record.slot].logprobs.append(record)
        for terminal in step.terminals:
            stream = self.streams[terminal.slot]
            if stream.terminal is not None or stream.attempt != terminal.attempt:
                self.problems.append(f"terminal of slot {terminal.slot} out of place")
            stream.terminal = terminal
            stream.changed.set()


class WorkerProcess:
    """A worker started as its users start it."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process = process
        self.address = address
        self.channel = open_channel(address, WORKER)
        self.stub: Any = worker_pb2_grpc.WorkerStub(self.channel)
        self.log: list[str] = []
        self.entry = common_pb2.ModelSpec()  # what was loaded last
        self._gateways: list[Gateway] = []

    async def connect(self, *, frames: bool = True) -> Gateway:
        made: list[Gateway] = []

        def accept(link: Link[worker_pb2.ServeRequest]) -> Gateway:
            made.append(Gateway(link))
            return made[0]

        await dial(
            self.address,
            SERVE,
            worker_pb2.ServeRequest,
            worker_pb2.ServeResponse.FromString,
            accept,
            frames=frames,
        )
        self._gateways.append(made[0])
        made[0].link.send(worker_pb2.ServeRequest(gateway_id="test"))
        async with asyncio.timeout(TIMEOUT_S):
            await made[0].greeted.wait()
        return made[0]

    async def disconnect(self) -> None:
        """Closes all gateways' links, and waits until they are."""
        gateways, self._gateways = self._gateways, []
        for gateway in gateways:
            gateway.link.close()
        async with asyncio.timeout(TIMEOUT_S):
            for gateway in gateways:
                await gateway.gone.wait()

    async def load(self, entry: common_pb2.ModelSpec, engine: str = "") -> list[worker_pb2.LoadModelResponse]:
        self.entry = entry
        request = worker_pb2.LoadModelRequest(spec=entry, engine=engine)
        return [response async for response in self.stub.LoadModel(request)]

    async def unload(self, **fields: Any) -> list[worker_pb2.UnloadModelResponse]:
        request = worker_pb2.UnloadModelRequest(**{"model": "m", **fields})
        return [response async for response in self.stub.UnloadModel(request)]

    def watch(self, **fields: Any) -> grpc.aio.UnaryStreamCall[Any, worker_pb2.WatchResponse]:
        call: grpc.aio.UnaryStreamCall[Any, worker_pb2.WatchResponse] = self.stub.Watch(
            worker_pb2.WatchRequest(**fields)
        )
        return call

    async def load_sample(self) -> worker_pb2.LoadSample:
        """How busy it is now."""
        call = self.watch()
        try:
            return (await anext(aiter(call))).load
        finally:
            call.cancel()

    async def becomes(self, running: int) -> None:
        """Waits until the first model runs so many sequences."""
        call = self.watch(min_interval_ms=1)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                async for response in call:
                    if response.load.models and response.load.models[0].running == running:
                        return
        finally:
            call.cancel()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(TIMEOUT_S):
            return await self.process.wait()


@asynccontextmanager
async def running_worker(*flags: str) -> AsyncIterator[WorkerProcess]:
    """Started with the flags; stopped at the end, if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tokenfleet.worker", "--listen", "127.0.0.1:0", "--log-format", "json"),
        *flags,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": "services"},
    )
    assert process.stderr is not None
    lines: list[str] = []
    async with asyncio.timeout(TIMEOUT_S):
        while not (match := re.search(r'"port": (\d+)', lines[-1] if lines else "")):
            line = (await process.stderr.readline()).decode()
            assert line, "the worker did not start:\n" + "".join(lines)
            lines.append(line)
    worker = WorkerProcess(process, f"127.0.0.1:{match[1]}")
    worker.log = lines
    reader = asyncio.create_task(_collect(process.stderr, lines))
    try:
        yield worker
    finally:
        await worker.channel.close()
        if process.returncode is None:
            process.kill()
        await process.wait()
        async with asyncio.timeout(TIMEOUT_S):
            await reader  # ends unless a process it started still holds the pipe


async def _collect(stream: asyncio.StreamReader, lines: list[str]) -> None:
    while line := await stream.readline():
        lines.append(line.decode())
