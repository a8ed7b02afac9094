"""What a router knows of the workers' caches against what they hold, whatever is told, lost or told again.

Nothing between the two is made up: the worker's log, its messages, the router's watch, the scheduler and its
index of prefixes. Only the connection is played: it may break, and a message may get lost on it.
"""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfleet.core.blocks import block_hashes
from tokenfleet.core.scheduling import PredictionSettings, Scheduler, SchedulerLimits, make_policy
from tokenfleet.core.scheduling.predicted import Predicted
from tokenfleet.router.worker_watch import WorkerWatch
from tokenfleet.runtime.discovery import Peer
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.following import Resubscribe
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker import cache_log
from tokenfleet.worker.cache_log import CacheLog

MODELS = ("m", "n")
WORKERS = ("w0", "w1")
# All prompts of one to four blocks over two tokens: the shorter ones are beginnings of the longer.
PROMPTS = [ids for length in range(1, 5) for ids in product((0, 1), repeat=length)]


class Router:
    """As much of a dispatcher as a watch needs."""

    def __init__(self) -> None:
        self.scheduler: Scheduler[Any] = Scheduler(
            make_policy("predicted", PredictionSettings()),
            SchedulerLimits(),
            draw=random.Random(1).random,
            decide=lambda request, decision: None,
            start_load=lambda wish: None,
        )

    def flush(self) -> None: ...

    def depth(self, target: str, model: str, ids: tuple[int, ...]) -> int:
        """How many blocks of the prompt the worker is taken to hold."""
        policy = cast(Predicted, self.scheduler.policy)
        replica = self.scheduler.fleet.replica(target, model)
        if replica is None:
            return 0
        number = policy.number(replica)
        runs = policy.index.match(block_hashes(list(ids), 1))
        return max((blocks for blocks, holders in runs if number in holders.members), default=0)


@dataclass
class Worker:
    """A worker, and the stream from it to the router."""

    target: str
    watch: WorkerWatch
    log: CacheLog = field(default_factory=lambda: CacheLog(lambda: None))
    held: dict[str, set[tuple[int, ...]]] = field(default_factory=lambda: {model: set() for model in MODELS})
    epoch: int = 1
    told: int = 0  # the last change that was put on the stream
    up: bool = False

    def store(self, model: str, ids: tuple[int, ...]) -> None:
        self.held[model].update(ids[: length + 1] for length in range(len(ids)))
        self.log.stored(model, block_hashes(list(ids), 1), 0)

    def remove(self, model: str, ids: tuple[int, ...]) -> None:
        """As engines do: a block goes when nothing that is held continues it."""
        if ids in self.held[model] and not any(one[:-1] == ids for one in self.held[model]):
            self.held[model].remove(ids)
            self.log.removed(model, block_hashes(list(ids), 1)[-1:])

    def clear(self, model: str) -> None:
        self.held[model].clear()
        self.log.cleared(model)

    def tell(self) -> None:
        """Puts all changes so far on the stream, which begins with the whole where it is new."""
        if not self.up:
            self._open()
            return
        events = self.log.after(self.told)
        self.told = self.log.sequence
        if events is None:
            self._send_snapshot()
            return
        self._send(worker_pb2.WatchResponse(load=self._load(), cache_events=events))

    def lose(self) -> None:
        """What would be told now gets lost on the way."""
        self.told = self.log.sequence

    def break_off(self) -> None:
        if self.up:
            self.up = False
            self.watch._broken(FleetError(common_pb2.REASON_WORKER_LOST, "broken"))

    def _open(self) -> None:
        self.up, self.told = True, self.log.sequence
        models = [
            worker_pb2.ResidentModel(
                model=model,
                state=worker_pb2.ResidentModel.STATE_READY,
                residency_epoch=self.epoch,
                features=["cache_events"],
                block_size=1,
            )
            for model in MODELS
        ]
        info = worker_pb2.WorkerInfo(
            worker_id=f"{self.target}.1", state=worker_pb2.WORKER_STATE_READY, models=models
        )
        self._send(worker_pb2.WatchResponse(info=info, load=self._load()))
        self._send_snapshot()

    def _send_snapshot(self) -> None:
        for chunk in list(self.log.snapshot()):
            self._send(worker_pb2.WatchResponse(cache_snapshot=chunk))

    def _send(self, response: worker_pb2.WatchResponse) -> None:
        if not self.up:
            return
        try:
            self.watch._received(worker_pb2.WatchResponse.FromString(response.SerializeToString()))
        except Resubscribe:
            self.break_off()

    def _load(self) -> worker_pb2.LoadSample:
        return worker_pb2.LoadSample(models=[worker_pb2.LoadSample.ModelLoad(model=m) for m in MODELS])


def differences(router: Router, worker: Worker) -> list[tuple[str, tuple[int, ...], int, int]]:
    """Where the router's opinion is another than the truth: model, prompt, taken to be held, held."""
    found = []
    for model, ids in product(MODELS, PROMPTS):
        held = sum(ids[:length] in worker.held[model] for length in range(1, len(ids) + 1))
        known = router.depth(worker.target, model, ids)
        if known != held:
            found.append((model, ids, known, held))
    return found


@contextmanager
def small_logs() -> Iterator[None]:
    """So that snapshots come in several chunks, and who falls behind needs one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_log, "HASHES_IN_CHUNK", 2)
        patch.setattr(cache_log, "EVENTS_KEPT", 4)
        yield


Steps = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "remove", "clear", "tell", "tell", "lose", "break"]),
        st.integers(0, len(WORKERS) - 1),
        st.sampled_from(MODELS),
        st.sampled_from(PROMPTS),
    ),
    max_size=40,
)


@settings(max_examples=200)
@given(Steps)
def test_the_router_knows_just_what_the_workers_hold(
    steps: list[tuple[str, int, str, tuple[int, ...]]],
) -> None:
    asyncio.run(_play(steps))


async def _play(steps: list[tuple[str, int, str, tuple[int, ...]]]) -> None:
    with small_logs():
        router = Router()
        workers = [
            Worker(target, WorkerWatch(Peer(target), "router", 50, cast(Any, router))) for target in WORKERS
        ]
        for kind, number, model, ids in steps:
            worker = workers[number]
            match kind:
                case "store":
                    worker.store(model, ids)
                case "remove":
                    worker.remove(model, ids)
                case "clear":
                    worker.clear(model)
                case "tell":
                    worker.tell()
                case "lose":
                    worker.lose()
                case "break":
                    worker.break_off()
                    assert not any(router.depth(worker.target, m, p) for m, p in product(MODELS, PROMPTS))
        for worker in workers:
            worker.store("m", (0,))  # whatever was lost shows by the number of the next change
            worker.tell()
            if not worker.up:
                worker.tell()
            assert worker.up
            assert differences(router, worker) == []
