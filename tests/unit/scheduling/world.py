"""A scheduler under a virtual clock, with workers that are told what to say."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

from tokenfleet.core.queueing import Lane
from tokenfleet.core.scheduling import (
    Decision,
    Device,
    Fingerprint,
    LoadWish,
    ModelLoad,
    Phase,
    Placed,
    Refused,
    ReplicaFacts,
    ReplicaState,
    Request,
    Scheduler,
    SchedulerLimits,
    WorkerFacts,
    make_policy,
)

MODEL = "m"
SOUND = Device()
ENGINES = frozenset({"sim"})
BLOCK_SIZE = 16  # tokens


def fingerprint(engine: str = "sim") -> Fingerprint:
    return Fingerprint(engine, "1", "abc", "f32")


class World:
    def __init__(
        self,
        policy: str = "least_loaded",
        seed: int = 1,
        by_model: Mapping[str, str] | None = None,
        **limits: Any,
    ) -> None:
        self.now = 0.0
        self.decisions: list[tuple[Request, Decision]] = []
        self.wishes: list[LoadWish] = []
        self.abandoned: list[LoadWish] = []
        self._lives: dict[str, int] = {}
        self.scheduler: Scheduler[Request] = Scheduler(
            make_policy(policy, by_model=by_model),
            SchedulerLimits(**{"engine_queue_ratio": 0.0, **limits}),
            draw=random.Random(seed).random,
            decide=lambda request, decision: self.decisions.append((request, decision)),
            start_load=self.wishes.append,
            stop_load=self.abandoned.append,
        )

    # -- workers: w1 listens at w1, its lives are called w1.1, w1.2 …

    def up(
        self,
        target: str,
        *,
        slots: int = 4,
        zone: str = "",
        state: ReplicaState | None = ReplicaState.READY,
        phase: Phase = Phase.READY,
        epoch: int = 1,
        engine: str = "sim",
        features: Iterable[str] = (),
        new_life: bool = False,
        kv_blocks: int = 0,
    ) -> None:
        """The worker says what it is; `slots` includes the one place that the engine queue adds."""
        self._lives[target] = self._lives.get(target, 1) + new_life
        replica = ReplicaFacts(
            MODEL,
            state or ReplicaState.AWAY,
            epoch=epoch,
            max_sequences=slots - 1,
            fingerprint=fingerprint(engine),
            features=frozenset(features),
            block_size=BLOCK_SIZE,
            kv_blocks_total=kv_blocks,
        )
        facts = WorkerFacts(
            self.id(target), target, zone, phase, frozenset({engine}), (replica,) if state is not None else ()
        )
        self.scheduler.describe(target, facts, self.now)

    def id(self, target: str) -> str:
        return f"{target}.{self._lives.get(target, 1)}"

    def sample(
        self,
        target: str,
        running: int = 0,
        waiting: int = 0,
        admitted: Iterable[str] = (),
        age_s: float = 0.0,
        device: Device = SOUND,
        **more: Any,
    ) -> None:
        loads = (ModelLoad(MODEL, running, waiting, **more),)
        self.scheduler.sample(target, loads, tuple(admitted), age_s, self.now, device)

    def lost(self, target: str) -> None:
        self.scheduler.lost(target, self.now)

    # -- requests

    def ask(self, *, deadline_s: float = 1000.0, model: str = MODEL, **fields: Any) -> Request:
        lane = fields.pop("lane", Lane.STANDARD)
        fields.setdefault("engines", ENGINES)
        request = Request("r", model, lane, self.now, self.now + deadline_s, **fields)
        self.scheduler.ask(request, self.now)
        return request

    def place(self, **fields: Any) -> Placed:
        """Asks, and expects to be placed at once."""
        decision = self.last(self.ask(**fields))
        assert isinstance(decision, Placed), decision
        return decision

    def last(self, request: Request) -> Decision:
        return [decision for asked, decision in self.decisions if asked is request][-1]

    def where(self, request: Request) -> str:
        """The target a request was placed at; empty: it was not."""
        decision = self.last(request)
        return decision.reservation.replica.worker.target if isinstance(decision, Placed) else ""

    def refused(self, request: Request) -> str:
        decision = self.last(request)
        return decision.reason if isinstance(decision, Refused) else ""

    # -- time

    def pass_time(self, seconds: float, living: Iterable[str] = (), running: int = 0) -> None:
        """Time passes in ticks of 50 ms, while the living workers sample once a second."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = round(min(self.now + 0.05, end), 6)
            if abs(self.now - round(self.now)) < 1e-6:
                for target in living:
                    self.sample(target, running)
            self.scheduler.tick(self.now)
