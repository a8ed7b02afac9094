"""Fleets with simulated engines of known speed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.catalogs import simulated, write_catalog
from tests.e2e.streams import chat
from tokenfleet.cli.local_fleet import FleetSpec, LocalFleet


@asynccontextmanager
async def sim_fleet(
    path: Path,
    *,
    workers: int = 3,
    itl_ms: int = 25,
    tokenizers: int = 1,
    models: Sequence[str] = ("sim",),
    max_sequences: int = 256,
    **spec: Any,
) -> AsyncIterator[LocalFleet]:
    """A fleet whose warm `models` answer exactly every `itl_ms`, and never end by themselves."""
    arguments: dict[str, Any] = {"ttft_ms": 5, "itl_ms": itl_ms, "mean_output_tokens": 0}
    entries = [simulated(name, profile="fixed", max_sequences=max_sequences, **arguments) for name in models]
    described = FleetSpec(
        state_dir=path / "state",
        workers=workers,
        tokenizers=tokenizers,
        zones=("zone-a", "zone-b", "zone-c"),
        engines=("sim",),
        catalog=write_catalog(path / "catalog.yaml", *entries),
        grace_s=3,
        **spec,
    )
    async with LocalFleet(described) as fleet:
        for name in models:
            await until_served(fleet, name)
        yield fleet


async def until_served(fleet: LocalFleet, model: str, patience_s: float = 120) -> None:
    """Waits until the model answers."""
    async with asyncio.timeout(patience_s):
        while (answer := await chat(fleet.http_url, model, "are you there?", 1)).error:
            await asyncio.sleep(0.1)
    assert answer.done


async def until_running(fleet: LocalFleet, count: int, patience_s: float = 20) -> None:
    """Waits until the first worker runs so many sequences."""
    url = f"http://{fleet.metrics_addresses['worker-0']}/metrics"
    async with asyncio.timeout(patience_s):
        while await scrape(url, "tokenfleet_worker_requests_running") != count:
            await asyncio.sleep(0.01)


async def scrape(url: str, name: str) -> float:
    """The sum over a metric's samples, 0 when it has none."""
    async with httpx.AsyncClient() as client:
        lines = (await client.get(url)).text.splitlines()
    samples = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(line.rpartition(" ")[2]) for line in samples)
