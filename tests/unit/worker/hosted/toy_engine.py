"""The engine that counts, as the worker has it, and a sink that keeps what it is told."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import Vocabulary
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import (
    Delta,
    EngineFacts,
    Finished,
    Generation,
    Logprobs,
    ModelFiles,
)
from tokenfleet.worker.engines.hosted.engine import HostedEngine

ROOT = Path(__file__).resolve().parents[4]
TIMEOUT_S = 20.0


class ToyHost:
    name: ClassVar[str] = "toy"
    module: ClassVar[str] = "tests.unit.worker.hosted.toy"
    start_timeout_s = TIMEOUT_S

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = dict(arguments)
        self.stall_timeout_s = float(self.arguments.get("stall_timeout_s", 60))
        self.ready: Mapping[str, Any] = {}
        self.blocks = 100

    def config(self) -> dict[str, Any]:
        return self.arguments

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": f"{ROOT}:{ROOT / 'services'}"}

    def facts(self, ready: Mapping[str, Any], memory_bytes: int) -> EngineFacts:
        self.ready = ready
        return EngineFacts(common_pb2.Fingerprint(), 4, 1000, self.blocks, memory_bytes)

    def request(self, generation: Generation) -> dict[str, Any]:
        del generation
        return {}

    def shrink(self) -> bool:
        self.blocks //= 2
        self.arguments["trouble"] = ""
        return True


class ToyEngine(HostedEngine):
    def host(self, model: ModelFiles) -> ToyHost:
        self.toy = ToyHost(model.arguments)
        return self.toy


class Heard:
    """A sink that keeps all it is told."""

    def __init__(self) -> None:
        self.ids: dict[int, list[int]] = {}
        self.finished: dict[int, Finished] = {}
        self.logprobs: list[Logprobs] = []
        self.down: list[tuple[str, FleetError]] = []
        self.up: list[EngineFacts | None] = []
        self.changed = asyncio.Event()

    def step(
        self, deltas: Sequence[Delta], finished: Sequence[Finished], logprobs: Sequence[Logprobs] = ()
    ) -> None:
        for key, ids in deltas:
            assert key not in self.finished
            self.ids.setdefault(key, []).extend(ids)
        for record in finished:
            assert record.key not in self.finished
            self.finished[record.key] = record
        self.logprobs += logprobs
        self.changed.set()

    def engine_down(self, cause: str, failure: FleetError) -> None:
        self.down.append((cause, failure))
        self.changed.set()

    def engine_up(self, facts: EngineFacts | None = None) -> None:
        self.up.append(facts)
        self.changed.set()

    def cache_stored(self, hashes: Sequence[int], parent: int) -> None:
        raise AssertionError

    def cache_removed(self, hashes: Sequence[int]) -> None:
        raise AssertionError

    async def until(self, what: Any) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not what():
                self.changed.clear()
                await self.changed.wait()


def model(**arguments: Any) -> ModelFiles:
    vocabulary = Vocabulary([str(token).encode() for token in range(1000)], frozenset())
    return ModelFiles("m", 1000, 16, arguments, 0, "", None, vocabulary)


def generation(key: int, last: int, max_tokens: int = 5) -> Generation:
    return Generation(key, [1, last], 2, max_tokens, common_pb2.SamplingParams())
