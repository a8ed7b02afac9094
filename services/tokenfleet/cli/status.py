"""`tokenfleet status`: what runs where, read from the fleet itself and not from what was planned."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import grpc

from tokenfleet.cli.discovery import local_fleet, reachable
from tokenfleet.cli.errors import CliError
from tokenfleet.v1 import (
    model_loader_pb2,
    model_loader_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    worker_pb2,
)

TIMEOUT_S = 3.0
Answer = TypeVar("Answer")


@dataclass(kw_only=True)
class WorkerRow:
    """One worker as its router sees it."""

    name: str
    zone: str
    state: str
    endpoint: str
    engines: list[str]
    models: dict[str, str]  # state by model
    running: int
    waiting: int
    reserved: int
    kv_usage: float | None  # 0 … 1; None: the engine tells nothing
    step_ms: float | None  # mean of the latest steps; None: there were none
    sample_age_ms: int
    error: str


@dataclass(kw_only=True)
class ModelRow:
    """One catalog entry and where it is."""

    name: str
    policy: str = ""
    context_length: int = 0  # tokens
    places: dict[str, str] = field(default_factory=dict)  # state by worker
    memory_bytes: int = 0
    pinned: bool = False
    wants_memory_bytes: int = 0  # it is wanted, and no worker has so much for it
    loading: str = ""
    error: str = ""


@dataclass(kw_only=True)
class Status:
    """All that the command shows. `problems` says what could not be asked, and why."""

    http: str = ""
    ready: bool | None = None
    processes: list[dict[str, Any]] = field(default_factory=list)
    workers: list[WorkerRow] = field(default_factory=list)
    models: list[ModelRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def show_status(*, port: int | None, router: str, loader: str, as_json: bool) -> None:
    """Prints the state of one fleet. Raises CliError when there is none."""
    record = {} if router else local_fleet(port, elsewhere="status --router host:port")
    state = asyncio.run(_ask(record, router, loader))
    if router and state.problems and not state.workers:
        raise CliError("; ".join(state.problems))
    if as_json:
        print(json.dumps(asdict(state), indent=2))
        return
    from tokenfleet.cli.status_tables import print_tables

    print_tables(state, record)


async def _ask(record: Mapping[str, Any], router: str, loader: str) -> Status:
    processes = {each["name"]: each for each in record.get("processes", ())}
    router = router or next(each["address"] for each in processes.values() if each["role"] == "router")
    loader = loader or processes.get("model-loader", {}).get("address", "")
    state = Status(
        http=_url(record["http"]) if record else "",
        processes=[_process_row(each) for each in processes.values()],
    )

    async def workers() -> None:
        state.workers = await _workers(router)

    async def models() -> None:
        state.models = await residencies(loader)

    async def gateway() -> None:
        state.ready = await asyncio.to_thread(_gateway_is_ready, _health_url(state.http, processes))

    asked = [_noting(state.problems, f"the router at {router}", workers())]
    if loader:
        asked.append(_noting(state.problems, f"the model-loader at {loader}", models()))
    if state.http:
        asked.append(_noting(state.problems, f"the gateway at {state.http}", gateway()))
    await asyncio.gather(*asked)
    return state


async def _noting(problems: list[str], whom: str, asking: Awaitable[None]) -> None:
    try:
        await asking
    except grpc.aio.AioRpcError as error:
        problems.append(f"{whom} does not answer: {error.code().name} {error.details()}")
    except OSError as error:
        problems.append(f"{whom} does not answer: {error}")


async def _workers(target: str) -> list[WorkerRow]:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        answer = await stub.ListWorkers(router_pb2.ListWorkersRequest(), timeout=TIMEOUT_S)
    return sorted((worker_row(view) for view in answer.workers), key=lambda row: (row.zone, row.name))


async def residencies(target: str) -> list[ModelRow]:
    """All catalog entries, as a model-loader knows them. Raises AioRpcError."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = model_loader_pb2_grpc.ModelLoaderStub(channel)
        answer = await stub.ListResidency(model_loader_pb2.ListResidencyRequest(), timeout=TIMEOUT_S)
    return [model_row(residency) for residency in answer.models]


def _url(recorded: str) -> str:
    """A plain address means HTTP without TLS."""
    return reachable(recorded if "://" in recorded else f"http://{recorded}")


def _health_url(url: str, processes: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the gateway says how it is to whoever knows nothing of its certificate's authority."""
    return url if url.startswith("http:") else f"http://{processes['gateway']['metrics']}"


def _gateway_is_ready(url: str) -> bool:
    # a proxy that the environment names is not for what runs on this machine
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health/ready", timeout=TIMEOUT_S) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False  # it answers, and says that it is not


def worker_row(view: router_pb2.WorkerView) -> WorkerRow:
    """A router's view, reduced to what a person asks for first."""
    info, loads = view.info, view.load.models
    blocks = sum(model.kv_blocks_total for model in info.models)
    steps = [us for load in loads for us in load.step_us]
    return WorkerRow(
        name=info.name or info.worker_id or view.endpoint,
        zone=info.zone,
        state=_state(view),
        endpoint=view.endpoint,
        engines=list(info.engines),
        models={
            model.model: _lower(worker_pb2.ResidentModel.State.Name(model.state)) for model in info.models
        },
        running=sum(load.running for load in loads),
        waiting=sum(load.waiting for load in loads),
        reserved=view.reserved,
        kv_usage=sum(load.kv_blocks_used for load in loads) / blocks if blocks else None,
        step_ms=sum(steps) / len(steps) / 1000 if steps else None,
        sample_age_ms=view.sample_age_ms,
        error=view.last_error,
    )


def model_row(residency: model_loader_pb2.ModelResidency) -> ModelRow:
    """A catalog entry's residency, likewise."""
    spec, loading = residency.spec, residency.loading
    return ModelRow(
        name=spec.name,
        policy=_lower(type(spec).Policy.Name(spec.policy)),
        context_length=spec.context_length,
        places={place.worker_name or place.worker_id: place.state for place in residency.places},
        memory_bytes=sum(place.memory_bytes for place in residency.places),
        pinned=residency.pinned,
        wants_memory_bytes=residency.wants_memory_bytes,
        loading=_lower(type(loading).Stage.Name(loading.stage)) if residency.HasField("loading") else "",
        error=residency.quarantine.message,
    )


def _state(view: router_pb2.WorkerView) -> str:
    if not view.connected:
        return "unreachable"
    return _lower(worker_pb2.WorkerState.Name(view.info.state))


def _lower(name: str) -> str:
    """`WORKER_STATE_READY` and its like as `ready`."""
    for prefix in ("WORKER_STATE_", "STATE_", "STAGE_", "POLICY_"):
        name = name.removeprefix(prefix)
    return name.lower()


def _process_row(recorded: Mapping[str, Any]) -> dict[str, Any]:
    row = {key: recorded[key] for key in ("name", "state", "pid", "address", "zone", "restarts", "log")}
    row["uptime_s"] = round(time.time() - recorded["started_at"], 1) if recorded["pid"] else None
    row["memory_bytes"] = _memory(recorded["pid"])
    return row


def _memory(pid: int | None) -> int | None:
    try:
        import psutil
    except ImportError:
        return None  # the bare install has no psutil
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        return sum(int(each.memory_info().rss) for each in (process, *process.children(recursive=True)))
    except psutil.Error:
        return None  # it just ended
