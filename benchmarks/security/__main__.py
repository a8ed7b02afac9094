"""`make bench-security`: four fleets side by side, asked in turns; the gateway's processor time of each.

They run at the same time and take turns within each round, so that whatever else the machine does falls on
all of them alike. The first is open; the others add keys, then TLS at the edge, then mutual TLS behind it.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
import yaml

from benchmarks._proc import CpuMeter, used_between
from benchmarks._report import RESULTS, Report, versions
from benchmarks.security.client import Connection, Target
from tokenfleet.cli.local_fleet import FleetSecurity, FleetSpec, LocalFleet
from tokenfleet.gateway.api_keys.keyring import Keyring
from tokenfleet.gateway.api_keys.keys_file import ApiKey, digest, new_key
from tokenfleet.model_loader.catalog import default_path

SYSTEMS = ("open", "keys", "keys_tls", "keys_tls_mtls")
ROLES = ("gateway", "tokenizer", "router", "model-loader", "worker")
MODEL = "sim"
STREAMS, TOKENS = 64, 256
CONNECTIONS, REQUESTS = 8, 60
HANDSHAKES = 100
KEYS, LOOKUPS = 10_000, 20_000


@dataclass(frozen=True, slots=True)
class System:
    name: str
    fleet: LocalFleet
    target: Target


async def main(rounds: int) -> None:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tokenfleet-bench-") as folder:
        async with AsyncExitStack() as stack:
            systems = [await _start(stack, Path(folder), name) for name in SYSTEMS]
            for shape in (_streams, _requests, _handshakes):
                for number in range(rounds + 1):  # the first warms up
                    for system in systems:
                        row = await _measured(system, shape)
                        if number:
                            rows.append(row)
                            print(row, flush=True)
    figures = _figures(rows) | {"key_check_us": _key_check_us()}
    report = Report(
        "make bench-security", figures, rows, versions("tokenfleet", "uvicorn", "uvloop", "grpcio")
    )
    report.write(RESULTS / "security.json")
    for name, value in figures.items():
        print(f"{name:44} {value:8.2f}")


async def _start(stack: AsyncExitStack, root: Path, name: str) -> System:
    folder = root / name
    folder.mkdir()
    ca = trustme.CA()
    security: dict[str, Path] = {}
    key, context = "", None
    if "keys" in name:
        key = new_key()
        entry = ApiKey(id="bench", sha256=digest(key.encode()), tenant="bench")
        security["api_keys"] = folder / "keys"
        security["api_keys"].write_text(entry.line() + "\n")
    if "_tls" in name:
        security["edge_cert"], security["edge_key"] = _write(ca, folder, "edge", "127.0.0.1")
        context = ssl.create_default_context(cadata=ca.cert_pem.bytes().decode())
    if "_mtls" in name:
        security["peers"] = folder
        (folder / "ca.pem").write_bytes(ca.cert_pem.bytes())
        for role in ROLES:
            _write(ca, folder, role, f"{role}.tokenfleet.internal")
    spec = FleetSpec(
        state_dir=folder / "state",
        workers=1,
        tokenizers=1,
        zones=("zone-a",),
        engines=("sim",),
        catalog=_catalog(folder / "catalog.yaml"),
        grace_s=2,
        security=FleetSecurity(**security),
    )
    fleet = await stack.enter_async_context(LocalFleet(spec))
    system = System(name, fleet, Target(fleet.http_url, MODEL, context, key))
    await _until_served(system)
    return system


def _write(ca: trustme.CA, folder: Path, name: str, *identities: str) -> tuple[Path, Path]:
    made = ca.issue_cert(*identities)
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    return cert, key


def _catalog(path: Path) -> Path:
    """The default catalog's small model on an engine that answers by the clock."""
    entry = dict(yaml.safe_load(default_path().read_text(encoding="utf-8"))["models"][0])
    arguments = {
        "profile": "fixed",
        "ttft_ms": 5,
        "itl_ms": 20,
        "max_sequences": 256,
        "mean_output_tokens": 0,
    }
    entry |= {"name": MODEL, "policy": "warm", "engines": [{"engine": "sim", "arguments": arguments}]}
    path.write_text(yaml.safe_dump({"models": [entry]}), encoding="utf-8")
    return path


async def _until_served(system: System) -> None:
    async with asyncio.timeout(120):
        while True:
            connection = Connection(system.target)
            try:
                await connection.open()
                await connection.ask(1, stream=False)
                return
            except (AssertionError, OSError):
                await asyncio.sleep(0.2)
            finally:
                connection.close()


async def _measured(system: System, shape: Callable[[Target], Awaitable[tuple[str, int]]]) -> dict[str, Any]:
    meter = CpuMeter({"gateway": [system.fleet.pid("gateway")]})
    before = meter.sample()
    unit, count = await shape(system.target)
    used_s = used_between(before, meter.sample())["gateway"]
    return {"system": system.name, "unit": unit, "count": count, "gateway_cpu_us": used_s / count * 1e6}


async def _streams(target: Target) -> tuple[str, int]:
    connections = [Connection(target) for _ in range(STREAMS)]
    await asyncio.gather(*(connection.open() for connection in connections))
    await asyncio.gather(*(connection.ask(TOKENS, stream=True) for connection in connections))
    for connection in connections:
        connection.close()
    return "token", STREAMS * TOKENS


async def _requests(target: Target) -> tuple[str, int]:
    async def one_after_the_other(connection: Connection) -> None:
        for _ in range(REQUESTS):
            await connection.ask(1, stream=False)

    connections = [Connection(target) for _ in range(CONNECTIONS)]
    await asyncio.gather(*(connection.open() for connection in connections))
    await asyncio.gather(*(one_after_the_other(connection) for connection in connections))
    for connection in connections:
        connection.close()
    return "request", CONNECTIONS * REQUESTS


async def _handshakes(target: Target) -> tuple[str, int]:
    """New connections, each with one request."""
    for _ in range(HANDSHAKES):
        connection = Connection(target)
        await connection.open()
        await connection.ask(1, stream=False)
        connection.close()
    return "connection", HANDSHAKES


def _figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for unit in ("token", "request", "connection"):
        for name in SYSTEMS:
            cost = [row["gateway_cpu_us"] for row in rows if (row["system"], row["unit"]) == (name, unit)]
            figures[f"gateway_cpu_us_per_{unit}/{name}"] = statistics.median(cost)
    return figures


def _key_check_us() -> float:
    """Median processor time of a check, with many keys in the file."""
    keys = [new_key() for _ in range(KEYS)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys"
        lines = [
            ApiKey(id=f"k{number}", sha256=digest(key.encode()), tenant="t").line()
            for number, key in enumerate(keys)
        ]
        path.write_text("\n".join(lines))
        keyring = Keyring(path)
    headers = [f"Bearer {key}".encode() for key in keys]
    rounds = []
    for _ in range(7):
        began = time.process_time()
        for number in range(LOOKUPS):
            keyring.admit(headers[number % KEYS])
        rounds.append((time.process_time() - began) / LOOKUPS * 1e6)
    return statistics.median(rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.security", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up")
    asyncio.run(main(parser.parse_args().rounds))
