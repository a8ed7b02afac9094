"""The engines' own servers and the fleets beside them, each with whoever computes on a core of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import psutil
import yaml

from benchmarks._cores import Cores
from benchmarks.gateway.systems import DIGEST, SOURCE
from tokenfleet.cli.local_fleet import FleetSpec, LocalFleet
from tokenfleet.cli.local_fleet.ports import LOOPBACK, PortReservation
from tokenfleet.runtime.models import ModelCache, default_cache_dir
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.vllm.child import complete

MODEL = "smollm2"
CONTEXT, SEQUENCES = 1024, 64
START_S = 300.0
KV_BYTES = 512 << 20
VLLM = {"max_model_len": CONTEXT, "max_num_seqs": SEQUENCES, "kv_cache_memory_bytes": KV_BYTES}
LLAMACPP = {"n_parallel": SEQUENCES, "n_ctx": SEQUENCES * 256, "n_batch": 64, "n_threads": 1}
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
ENGINES: Mapping[str, Mapping[str, Any]] = {"vllm": VLLM, "llamacpp": LLAMACPP}


class NoAnswer(Exception):
    """A server did not come up; the message says where its log is."""


@dataclass(frozen=True, slots=True)
class System:
    name: str
    port: int
    computing: tuple[psutil.Process, ...]  # their processor time is the engine's
    around: tuple[psutil.Process, ...]


@asynccontextmanager
async def bare(engine: str, cores: Cores, state: Path) -> AsyncIterator[System]:
    """The engine's own server."""
    start = {"vllm": _bare_vllm, "llamacpp": _bare_llamacpp}[engine]
    reservation = PortReservation()
    (port,) = reservation.take(1)
    with opened(state / "server.log") as log:
        process = await start(port, log)
        try:
            await _until_answered(port, process, state / "server.log")
            server = psutil.Process(process.pid)
            children = server.children(recursive=True)
            # vLLM's server is the parent of whoever computes; llama.cpp's computes itself
            computing, around = (tuple(children), (server,)) if children else ((server,), ())
            _settle(computing, around, cores)
            yield System("bare", port, computing, around)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            try:
                async with asyncio.timeout(20):
                    await process.wait()
            except TimeoutError:
                os.killpg(process.pid, 9)
                await process.wait()
            reservation.release()


@asynccontextmanager
async def fleet(engine: str, cores: Cores, state: Path) -> AsyncIterator[System]:
    """A fleet of one worker."""
    catalog = write_catalog(state / "catalog.yaml", engine)
    spec = FleetSpec(
        state_dir=state,
        workers=1,
        tokenizers=1,
        zones=("zone-a",),
        engines=(engine,),
        catalog=catalog,
        # a closed loop asks for more than one slow worker answers in time: it shall wait in the engine, as
        # it does on the engine's own server, and not by class and tenant in the router
        flags={"worker": ("--threads", "1"), "router": ("--ttft-objectives", "standard=3600")},
        restart=False,
        start_timeout_s=START_S,
    )
    async with LocalFleet(spec) as running:
        port = int(running.http_address.rpartition(":")[2])
        await _until_answered(port, None, state / "logs")
        worker = psutil.Process(running.pid("worker-0"))
        children = worker.children(recursive=True)
        around = tuple(psutil.Process(running.pid(name)) for name in running.processes)
        _settle(children, around, cores)
        yield System("fleet", port, tuple(children), around)


def write_catalog(path: Path, engine: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"models": [_entry(engine)]}), encoding="utf-8")
    return path


def opened(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


def _settle(computing: Sequence[psutil.Process], around: Sequence[psutil.Process], cores: Cores) -> None:
    for one in around:
        pin(one, cores.load)
    for one in computing:
        pin(one, cores.measured)


def pin(process: psutil.Process, core: int) -> None:
    """All threads of it; those that it starts later follow."""
    with suppress(psutil.NoSuchProcess):
        for thread in process.threads():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, {core})


def _entry(engine: str) -> dict[str, Any]:
    return {
        "name": MODEL,
        "source": SOURCE,
        "digest": DIGEST,
        "context_length": CONTEXT,
        "block_size": 16,
        "policy": "warm",
        "engines": [{"engine": engine, "arguments": dict(ENGINES[engine])}],
    }


def _spec() -> common_pb2.ModelSpec:
    return common_pb2.ModelSpec(
        name=MODEL, source=SOURCE, digest=DIGEST, context_length=CONTEXT, block_size=16
    )


async def _bare_vllm(port: int, log: Any) -> asyncio.subprocess.Process:
    folder = await asyncio.to_thread(ModelCache(default_cache_dir()).folder, _spec())
    config = {"arguments": dict(VLLM), "block_size": 16, "kv_bytes": 0, "model": str(folder)}
    block_size = complete(config, on_cpu=True)["block_size"]
    program = shutil.which("vllm", path=str(Path(sys.executable).parent))
    assert program is not None
    return await asyncio.create_subprocess_exec(
        *(program, "serve", str(folder), "--served-model-name", MODEL),
        *("--host", LOOPBACK, "--port", str(port), "--enforce-eager", "--block-size", str(block_size)),
        *("--max-model-len", str(CONTEXT), "--max-num-seqs", str(SEQUENCES)),
        *("--kv-cache-memory-bytes", str(KV_BYTES), "--disable-uvicorn-access-log"),
        stdout=log,
        stderr=log,
        env={**os.environ, **ONE_THREAD},
        start_new_session=True,
    )


async def _bare_llamacpp(port: int, log: Any) -> asyncio.subprocess.Process:
    weights = await asyncio.to_thread(ModelCache(default_cache_dir()).weights, _spec())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.overhead.bare_llamacpp"),
        stdin=asyncio.subprocess.PIPE,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    assert process.stdin is not None
    config = {**LLAMACPP, "n_gpu_layers": -1, "model": str(weights), "port": port}
    process.stdin.write(json.dumps(config).encode() + b"\n")
    return process


async def _until_answered(port: int, process: asyncio.subprocess.Process | None, log: Path) -> None:
    """Waits until the server has generated a token."""
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": 1}
    try:
        async with asyncio.timeout(START_S), httpx.AsyncClient(timeout=START_S) as client:
            while process is None or process.returncode is None:
                with suppress(httpx.TransportError):
                    answer = await client.post(f"http://{LOOPBACK}:{port}/v1/completions", json=body)
                    if answer.status_code == httpx.codes.OK:
                        return
                await asyncio.sleep(0.5)
    except TimeoutError:
        pass
    raise NoAnswer(f"no answer from the server, see {log}")
