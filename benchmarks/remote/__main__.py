"""`make bench-remote`: both engines in turns, in this process; its processor time per token."""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import uvloop

from benchmarks._report import RESULTS, Report, versions
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import Vocabulary
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import (
    Delta,
    Engine,
    EngineFacts,
    Finished,
    Generation,
    Logprobs,
    ModelFiles,
)
from tokenfleet.worker.engines.hosted.engine import HostedEngine
from tokenfleet.worker.engines.remote.engine import RemoteEngine

STREAMS = (1, 16, 64, 256)
STEP_MS = 25.0
PROMPT = list(range(100, 164))
ROOT = Path(__file__).resolve().parents[2]


class Counting:
    """A sink that counts."""

    def __init__(self) -> None:
        self.tokens = self.steps = 0
        self.left = 0
        self.done = asyncio.Event()

    def step(
        self, deltas: Sequence[Delta], finished: Sequence[Finished], logprobs: Sequence[Logprobs] = ()
    ) -> None:
        self.steps += 1
        self.tokens += sum(len(ids) for _, ids in deltas)
        self.left -= len(finished)
        for record in finished:
            if record.failure is not None:
                raise record.failure
        if not self.left:
            self.done.set()

    def engine_down(self, cause: str, failure: FleetError) -> None:
        raise failure

    def engine_up(self, facts: EngineFacts | None = None) -> None:
        pass

    def cache_stored(self, hashes: Sequence[int], parent: int) -> None:
        pass

    def cache_removed(self, hashes: Sequence[int]) -> None:
        pass


class PacedHost:
    name: ClassVar[str] = "paced"
    module: ClassVar[str] = "benchmarks.remote.child"
    start_timeout_s = stall_timeout_s = 60.0

    def config(self) -> dict[str, Any]:
        return {"step_s": STEP_MS / 1e3}

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": f"{ROOT}:{ROOT / 'services'}"}

    def facts(self, ready: Mapping[str, Any], memory_bytes: int) -> EngineFacts:
        return EngineFacts(common_pb2.Fingerprint(), 1_024, 8_192, 0)

    def request(self, generation: Generation) -> dict[str, Any]:
        return {}

    def shrink(self) -> bool:
        return False


class PacedEngine(HostedEngine):
    def host(self, model: ModelFiles) -> PacedHost:
        return PacedHost()


async def main(rounds: int, seconds: float) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.remote.server", str(port), str(STEP_MS)), cwd=ROOT
    )
    sinks = {"remote": Counting(), "child": Counting()}
    engines: dict[str, Engine] = {"remote": RemoteEngine(1), "child": PacedEngine(1)}
    rows: list[dict[str, Any]] = []
    try:
        for name, engine in engines.items():
            await engine.load(_model({"address": f"127.0.0.1:{port}"}), sinks[name])
        for number in range(rounds + 1):  # the first warms up
            for streams in STREAMS:
                for name, engine in engines.items():
                    row = {
                        "engine": name,
                        "streams": streams,
                        **await _measured(engine, sinks[name], streams, seconds),
                    }
                    if number:
                        rows.append(row)
                        print(row, flush=True)
        for engine in engines.values():
            await engine.unload()
    finally:
        server.kill()
        await server.wait()
    figures = _figures(rows)
    report = Report(
        "make bench-remote", figures, rows, versions("tokenfleet", "grpcio", "smg-grpc-proto", "uvloop")
    )
    report.write(RESULTS / "remote.json")
    for name, value in figures.items():
        print(f"{name:32} {value:8.2f}")


async def _measured(engine: Engine, sink: Counting, streams: int, seconds: float) -> dict[str, Any]:
    tokens = max(8, round(seconds * 1e3 / STEP_MS))
    sink.done.clear()
    sink.left, before, steps = streams, sink.tokens, sink.steps
    sampling = common_pb2.SamplingParams(temperature=0, ignore_eos=True)
    began, cpu = time.monotonic(), time.process_time()
    for _ in range(streams):
        engine.submit(Generation(_next_key(), PROMPT, len(PROMPT), tokens, sampling))
    await sink.done.wait()
    used, made = time.process_time() - cpu, sink.tokens - before
    return {
        "tokens": made,
        "us_per_token": used / made * 1e6,
        "tokens_per_step": made / (sink.steps - steps),
        "wall_s": time.monotonic() - began,
    }


def _figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    def median(engine: str, streams: int) -> float:
        of: list[float] = [
            row["us_per_token"] for row in rows if (row["engine"], row["streams"]) == (engine, streams)
        ]
        return statistics.median(of)

    figures = {
        f"worker_us_per_token/{engine}@{streams}": median(engine, streams)
        for engine in ("remote", "child")
        for streams in STREAMS
    }
    for streams in STREAMS:
        figures[f"hop_us_per_token@{streams}"] = median("remote", streams) - median("child", streams)
    return figures


def _model(arguments: dict[str, Any]) -> ModelFiles:
    vocabulary = Vocabulary([b"x"] * 4_096, frozenset())
    return ModelFiles("m", 8_192, 16, arguments, 0, "", None, vocabulary)


_KEYS = iter(range(1, 1 << 62))


def _next_key() -> int:
    return next(_KEYS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    given = parser.parse_args()
    uvloop.run(main(given.rounds, given.seconds))
