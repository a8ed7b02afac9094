"""What becomes of a model that is told to sleep and cannot."""

from pathlib import Path
from typing import Any

from tests.unit.worker.fakes import FakeEngine, resident
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import ModelCache
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.cache_log import CacheLog
from tokenfleet.worker.dispatcher import Dispatcher
from tokenfleet.worker.engines.base import EngineFacts, SleepCosts
from tokenfleet.worker.memory import Memory
from tokenfleet.worker.residency import Residency
from tokenfleet.worker.resident import Resident, State

Unloaded = worker_pb2.UnloadModelResponse


class Sleeper(FakeEngine):
    def __init__(self, failure: FleetError | None) -> None:
        super().__init__()
        self.failure = failure
        self.unloaded = False

    async def sleep(self) -> int:
        if self.failure is not None:
            raise self.failure
        return 700

    async def unload(self) -> int:
        self.unloaded = True
        return 0


def residency(residents: dict[str, Resident], cache_dir: Path) -> Residency:
    def ignored(*_: Any) -> None: ...

    return Residency(
        ModelCache(cache_dir),
        Dispatcher(residents, 10),
        residents,
        CacheLog(ignored),
        engines=["fake"],
        threads=1,
        engine_arguments={},
        memory=Memory(1_000, lambda: 0),
        canary_timeout_s=1,
        worker_id="w",
        changed=ignored,
        restarted=ignored,
        step_seconds=ignored,
    )


async def told_to_sleep(engine: Sleeper, cache_dir: Path) -> tuple[Unloaded, dict[str, Resident]]:
    model = resident(engine)
    facts = EngineFacts(common_pb2.Fingerprint(), 8, 100, 64, 800, sleep=SleepCosts(100, 0.1))
    model.facts = facts
    residents = {"m": model}
    request = worker_pb2.UnloadModelRequest(model="m", sleep=True)
    answers = [answer async for answer in residency(residents, cache_dir).unload(request, 1)]
    return answers[-1], residents


async def test_one_that_sleeps_says_what_it_gave_up(tmp_path: Path) -> None:
    answer, residents = await told_to_sleep(Sleeper(None), tmp_path)
    assert (answer.stage, answer.freed_bytes) == (Unloaded.STAGE_ASLEEP, 700)
    assert residents["m"].state == State.STATE_ASLEEP
    assert residents["m"].held_bytes == 100


async def test_one_that_cannot_sleep_is_unloaded(tmp_path: Path) -> None:
    engine = Sleeper(FleetError(common_pb2.REASON_ENGINE_FAILED, "not tired"))
    answer, residents = await told_to_sleep(engine, tmp_path)
    assert answer.stage == Unloaded.STAGE_UNLOADED
    assert engine.unloaded
    assert residents == {}
