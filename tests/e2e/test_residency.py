"""More models than memory, cold requests, and what dies while a model loads: nobody is lost, nobody hangs."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.catalogs import simulated, write_catalog
from tests.e2e.sim_fleet import scrape
from tests.e2e.streams import Answered, chat
from tokenfleet.cli.local_fleet import FleetSpec, LocalFleet
from tokenfleet.runtime.grpc_host import open_channel
from tokenfleet.runtime.roles import MODEL_LOADER
from tokenfleet.v1 import model_loader_pb2, model_loader_pb2_grpc

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

PATIENCE_S = 120
LOADS = 'tokenfleet_model_loader_loads_total{outcome="ready"}'


def lazy(name: str, *, load_s: float = 1.0, size: int = 600, policy: str = "lazy") -> dict[str, Any]:
    entry = simulated(name, profile="fixed", ttft_ms=2, itl_ms=2, mean_output_tokens=0, load_s=load_s)
    (engine,) = entry["engines"]
    return entry | {"policy": policy, "engines": [{**engine, "weights_bytes": size}]}


@asynccontextmanager
async def fleet_of(
    path: Path, *entries: dict[str, Any], workers: int = 1, memory: int = 1000, **loader: float
) -> AsyncIterator[LocalFleet]:
    """Workers with room for one model of 600 bytes, unless told otherwise."""
    settings = {"min_residency_s": 0.5, **loader}
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    described = FleetSpec(
        state_dir=path / "state",
        workers=workers,
        tokenizers=1,
        engines=("sim",),
        catalog=write_catalog(path / "catalog.yaml", *entries),
        flags={"worker": ("--memory-bytes", str(memory)), "model-loader": flags},
        grace_s=3,
    )
    async with LocalFleet(described) as fleet:
        yield fleet


async def ask(fleet: LocalFleet, model: str, count: int = 1, tokens: int = 4) -> list[Answered]:
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.gather(
            *(chat(fleet.http_url, model, f"number {number}", tokens) for number in range(count))
        )


def all_answered(answers: Sequence[Answered]) -> bool:
    assert [answer.error for answer in answers if answer.error] == []
    return all(answer.done for answer in answers)


async def loader_metric(fleet: LocalFleet, name: str) -> float:
    return await scrape(f"http://{fleet.metrics_addresses['model-loader']}/metrics", name)


def logged(fleet: LocalFleet, process: str, event: str) -> list[dict[str, Any]]:
    """The records of that event over all its lives."""
    records = []
    for line in fleet.log(process).read_text().splitlines():
        if line.startswith("{"):
            record = json.loads(line)
            if record.get("event") == event:
                records.append(record)
    return records


async def until_logged(fleet: LocalFleet, process: str, event: str, count: int = 1) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(logged(fleet, process, event)) < count:
            await asyncio.sleep(0.02)


async def residency(fleet: LocalFleet, model: str) -> model_loader_pb2.ModelResidency:
    async with open_channel(fleet.addresses["model-loader"], MODEL_LOADER) as channel:
        stub = model_loader_pb2_grpc.ModelLoaderStub(channel)
        listed = await stub.ListResidency(
            model_loader_pb2.ListResidencyRequest(), wait_for_ready=True, timeout=PATIENCE_S
        )
    return next(one for one in listed.models if one.spec.name == model)


async def test_a_hundred_cold_requests_cost_one_load(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, lazy("a"), workers=2) as fleet:
        answers = await ask(fleet, "a", 100)
        assert all_answered(answers)
        assert len(logged(fleet, "model-loader", "load ordered")) == 1
        assert await loader_metric(fleet, LOADS) == 1


async def test_models_take_turns_where_only_one_fits(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, lazy("a", load_s=0.2), lazy("b", load_s=0.2)) as fleet:
        rounds = await asyncio.gather(*(ask(fleet, "ab"[number % 2], 5) for number in range(20)))
        assert all(all_answered(answers) for answers in rounds)
        loads, evictions = logged(fleet, "model-loader", "loaded"), logged(fleet, "model-loader", "evicted")
        assert {record["model"] for record in loads} == {"a", "b"}
        assert len(loads) <= 6, "requests of one model are answered in one turn, not one by one"
        assert len(evictions) == len(loads) - 1
        assert all(record["cause"] == "memory" and record["wanted_for"] for record in evictions)
        assert await loader_metric(fleet, "tokenfleet_model_loader_evictions_total") == len(evictions)


async def test_a_model_for_which_there_is_no_memory_is_a_typed_error_and_a_hint(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, lazy("a", policy="warm"), lazy("big", size=900)) as fleet:
        assert all_answered(await ask(fleet, "a"))
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            body = {"model": "big", "prompt": "x", "max_tokens": 1}
            response = await client.post(f"{fleet.http_url}/v1/completions", json=body)
        error = response.json()["error"]
        assert (error["code"], error["missing_bytes"]) == ("out_of_memory", 500)
        assert "pinned models keep 600" in error["message"]
        assert (
            await loader_metric(fleet, 'tokenfleet_model_loader_wants_memory_bytes{engine="sim",model="big"}')
            == 900
        )
        assert (await residency(fleet, "big")).wants_memory_bytes == 900


@pytest.mark.parametrize("victim", ["model-loader", "worker-0", "store"])
async def test_what_dies_while_a_model_loads_costs_nobody_an_answer(tmp_path: Path, victim: str) -> None:
    async with fleet_of(tmp_path, lazy("a", load_s=3.0), lazy("b")) as fleet:
        asking = asyncio.create_task(ask(fleet, "a", 20))
        await until_logged(fleet, "model-loader", "load ordered")
        fleet.kill(victim, signal.SIGKILL)
        assert all_answered(await asking)
        await fleet.wait_ready(victim)
        # the worker goes on with a load that its loader no longer follows, and another loader joins it
        loads = len(logged(fleet, "worker-0", "model ready"))
        assert loads == 1
        # and the catalog is what it was: the other model takes the first one's place
        assert all_answered(await ask(fleet, "b", 3))
        assert [place.state for place in (await residency(fleet, "b")).places] == ["ready"]
        assert not (await residency(fleet, "a")).places
