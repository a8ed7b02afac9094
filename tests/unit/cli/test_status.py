"""What `tokenfleet status` makes of the answers of a router and a model-loader."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from rich.console import Console

from tokenfleet.cli import discovery, status, status_tables
from tokenfleet.cli.errors import CliError
from tokenfleet.cli.local_fleet.state import StateDir
from tokenfleet.v1 import common_pb2, model_loader_pb2, router_pb2, worker_pb2

READY = worker_pb2.ResidentModel.STATE_READY

BUSY = router_pb2.WorkerView(
    info=worker_pb2.WorkerInfo(
        name="worker-1",
        zone="zone-b",
        state=worker_pb2.WORKER_STATE_READY,
        engines=["llamacpp"],
        models=[worker_pb2.ResidentModel(model="small", state=READY, kv_blocks_total=200)],
    ),
    load=worker_pb2.LoadSample(
        models=[
            worker_pb2.LoadSample.ModelLoad(
                model="small", running=3, waiting=1, kv_blocks_used=50, step_us=[10_000, 20_000]
            )
        ]
    ),
    endpoint="127.0.0.1:9001",
    connected=True,
    reserved=2,
)
GONE = router_pb2.WorkerView(endpoint="127.0.0.1:9000", last_error="connection refused")


RESIDENCY = model_loader_pb2.ListResidencyResponse(
    models=[
        model_loader_pb2.ModelResidency(
            spec=common_pb2.ModelSpec(name="small", policy=common_pb2.ModelSpec.POLICY_WARM),
            places=[
                model_loader_pb2.ModelResidency.Place(
                    worker_id="a1", worker_name="worker-1", state="ready", memory_bytes=600_000_000
                )
            ],
        ),
        model_loader_pb2.ModelResidency(
            spec=common_pb2.ModelSpec(name="broken", policy=common_pb2.ModelSpec.POLICY_LAZY),
            quarantine=common_pb2.Failure(message="not enough memory"),
        ),
    ]
)


def answers(service: str, method: str, response: Message) -> grpc.GenericRpcHandler:
    """A service whose one method always answers the same."""

    async def answer(request: bytes, context: object) -> bytes:
        del request, context
        return response.SerializeToString()

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(answer)
    return grpc.method_handlers_generic_handler(service, {method: handler})


@pytest.fixture
async def target() -> AsyncIterator[str]:
    server = grpc.aio.server()
    workers = router_pb2.ListWorkersResponse(workers=[BUSY, GONE])
    server.add_generic_rpc_handlers(
        (
            answers("tokenfleet.v1.Router", "ListWorkers", workers),
            answers("tokenfleet.v1.ModelLoader", "ListResidency", RESIDENCY),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


def test_a_worker_row() -> None:
    row = status.worker_row(BUSY)
    assert (row.name, row.zone, row.state) == ("worker-1", "zone-b", "ready")
    assert row.models == {"small": "ready"}
    assert (row.running, row.waiting, row.reserved) == (3, 1, 2)
    assert row.kv_usage == 0.25
    assert row.step_ms == 15.0


def test_a_worker_that_the_router_lost() -> None:
    row = status.worker_row(GONE)
    assert (row.name, row.state, row.error) == ("127.0.0.1:9000", "unreachable", "connection refused")
    assert row.kv_usage is None
    assert row.step_ms is None


async def test_json_of_a_fleet_elsewhere(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    await asyncio.to_thread(status.show_status, port=None, router=target, loader=target, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in shown["workers"]] == ["127.0.0.1:9000", "worker-1"]
    assert [(row["name"], row["policy"], row["places"]) for row in shown["models"]] == [
        ("small", "warm", {"worker-1": "ready"}),
        ("broken", "lazy", {}),
    ]
    assert shown["models"][1]["error"] == "not enough memory"
    assert shown["problems"] == []


async def test_tables(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = await status._ask({}, target, target)
    status_tables.print_tables(state, {}, Console(width=160, highlight=False))
    shown = capsys.readouterr().out
    busy = next(line.split() for line in shown.splitlines() if line.startswith("worker-1"))
    assert busy == ["worker-1", "zone-b", "ready", "small", "3", "1", "25%", "15.0", "ms"]
    assert "unreachable" in shown
    assert "600 MB" in shown


async def test_a_worker_that_hangs_or_is_gone_is_told_in_few_words(
    target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = await status._ask({}, target, target)
    gone, silent = state.workers
    gone.error = "failed to connect to all addresses; last error: UNKNOWN: [x]: Connection refused"
    silent.sample_age_ms = 65_000
    status_tables.print_tables(state, {}, Console(width=110, highlight=False))
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["127.0.0.1:9000", "unreachable", "Connection", "refused"] in [line[:4] for line in shown]
    assert ["worker-1", "zone-b", "silent", "for", "1m05s", "small"] in [line[:6] for line in shown]


def test_a_router_that_does_not_answer_is_named() -> None:
    with pytest.raises(CliError, match=r"the router at 127\.0\.0\.1:1 does not answer: UNAVAILABLE"):
        status.show_status(port=None, router="127.0.0.1:1", loader="", as_json=False)


def test_without_a_fleet_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENFLEET_STATE", str(tmp_path))
    with pytest.raises(CliError, match=r"no fleet runs on this machine .* Start one with: .*tokenfleet.* up"):
        status.show_status(port=None, router="", loader="", as_json=False)


def test_of_several_fleets_one_has_to_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENFLEET_STATE", str(tmp_path))
    fleets = [StateDir(tmp_path / str(port)) for port in (8080, 8090)]
    for port, state in zip((8080, 8090), fleets, strict=True):
        state.lock()
        state.write_record({"http_port": port})
    with pytest.raises(CliError, match="several fleets run, on ports 8080, 8090: choose one with --port"):
        status.show_status(port=None, router="", loader="", as_json=False)
    assert discovery.local_fleet(8090, elsewhere="") == {"http_port": 8090}
    for state in fleets:
        state.unlock()
