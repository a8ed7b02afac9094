"""What is known about the workers, and which of them may be sent a request now.

Knowledge is only as good as its age: a worker whose watch broke is out at once, one whose load sample is
`STALE` intervals old is out until it speaks again, and one where a request just failed is out until a sample
measured after the failure contradicts. All of them are still *expected* for a while, because a supervisor
restarts what dies, and whoever waits for them shall not be turned away for a restart's few seconds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import NamedTuple, Protocol

from tokenfleet.core.scheduling.cold import LoadTimes
from tokenfleet.core.scheduling.model import (
    SOUND,
    UNKNOWN_FINGERPRINT,
    Device,
    Fingerprint,
    Phase,
    Replica,
    Worker,
)
from tokenfleet.core.scheduling.sampling import LONGEST_SILENCE_S
from tokenfleet.core.scheduling.speed import Step

# Workers sample at least every second, or as seldom as a large fleet asks for. One that is later than that
# may hold anything that could have been sent to it in the meantime: each second counts as one more to wait
# there, until it is out altogether. In intervals:
LATE = 1.25
STALE = 2.5
# A worker whose engine died says so within its sampling interval; its supervisor takes a little longer.
RESTART_NOTICE_S = 5.0

_LOADABLE = frozenset({Phase.STARTING, Phase.READY})


class ReplicaState(Enum):
    """A model's state on a worker, as far as a choice depends on it."""

    LOADING = "loading"
    READY = "ready"
    AWAY = "away"  # unloading, asleep or failed


@dataclass(slots=True, frozen=True)
class ReplicaFacts:
    """What a worker says of one model it holds."""

    model: str
    state: ReplicaState
    epoch: int = 0
    max_sequences: int = 0  # 0: no known bound
    running: int = 0
    fingerprint: Fingerprint = UNKNOWN_FINGERPRINT
    features: frozenset[str] = frozenset()
    block_size: int = 0  # tokens
    kv_blocks_total: int = 0  # 0: no known bound


@dataclass(slots=True, frozen=True)
class WorkerFacts:
    """What a worker says of itself."""

    worker_id: str
    name: str
    zone: str
    phase: Phase
    engines: frozenset[str]
    replicas: tuple[ReplicaFacts, ...]


class ModelLoad(NamedTuple):
    """One model's figures in a load sample."""

    model: str
    running: int
    waiting: int
    queued_prefill_tokens: int = 0
    context_tokens: int = 0
    kv_blocks_used: int = 0
    steps: Sequence[Step] = ()  # since the last sample


NO_LOADS = ModelLoad("", 0, 0)


class Roll(Protocol):
    """Keeps books on the replicas that may be sent requests."""

    def appeared(self, replica: Replica) -> None:
        """It may be sent requests."""

    def vanished(self, replica: Replica) -> None:
        """It may not, for the time being."""

    def emptied(self, replica: Replica) -> None:
        """It holds nothing that it held: its engine was started afresh, or it is gone for good."""


class Fleet:
    """All workers by their address, and for each model the replicas that may be sent a request."""

    def __init__(
        self, engine_queue_ratio: float = 0.125, patience_s: float = 30.0, roll: Roll | None = None
    ) -> None:
        """`engine_queue_ratio`: how much more than it can run an engine is given, so that it never starves
        between two samples. `patience_s`: how long a worker that went away is expected back."""
        self.workers: dict[str, Worker] = {}
        self.load_times = LoadTimes()
        self._roll = roll
        self._engine_queue_ratio = engine_queue_ratio
        self._patience_s = patience_s
        self._awaited_since = -math.inf  # when a worker last left whose successor may come to another address
        self._placeable: dict[str, dict[str, Replica]] = {}
        # Answers of `vetoed` since something last changed that they depend on.
        self._vetoed: dict[tuple[str, frozenset[str], int], tuple[tuple[Worker, str, bool], ...]] = {}
        self._nobody_late_before = -math.inf

    def expect(self, target: str, now: float) -> None:
        """There shall be a worker at that address."""
        self.workers.setdefault(target, Worker(target, seen_at=now))
        self._vetoed.clear()

    def sampled_every(self, target: str, interval_s: float) -> None:
        """The worker at that address was asked to tell its load no more often than that."""
        worker = self.workers.get(target)
        if worker is not None:
            worker.interval_s = max(interval_s, LONGEST_SILENCE_S)
            self._nobody_late_before = -math.inf

    def leave(self, target: str, now: float) -> None:
        """There is no worker at that address any more; another may come in its stead."""
        worker = self.workers.pop(target, None)
        if worker is not None:
            self._withdraw(worker)
            self._forget(worker.replicas.values())
            worker.connected = False
            self._awaited_since = now

    def await_workers(self, now: float) -> None:
        """Workers are still being discovered: who finds none is to wait for one."""
        self._awaited_since = now

    def placeable(self, model: str) -> Collection[Replica]:
        """Replicas that serve the model; whether they have room is another matter."""
        replicas = self._placeable.get(model)
        return replicas.values() if replicas else ()

    def replica(self, target: str, model: str) -> Replica | None:
        """What the worker at that address holds of the model, placeable or not."""
        worker = self.workers.get(target)
        return None if worker is None else worker.replicas.get(model)

    def describe(self, target: str, facts: WorkerFacts, now: float) -> None:
        """A worker introduced itself, or something about it changed."""
        worker = self.workers.get(target)
        if worker is None:
            worker = self.workers[target] = Worker(target, seen_at=now)
        elif worker.id and worker.id != facts.worker_id:
            self._withdraw(worker)
            self._forget(worker.replicas.values())
            worker = self.workers[target] = Worker(target, seen_at=now, interval_s=worker.interval_s)
        if not worker.connected or worker.phase is not facts.phase:
            worker.phase_since = now
        if not worker.connected:
            # It tells the leases of each model, which do until the first sample.
            worker.measured_at = now
            worker.stale = False
            worker.late_s = 0.0
            worker.doubted_at = None
        worker.id, worker.name, worker.zone = facts.worker_id, facts.name, facts.zone
        worker.phase, worker.engines = facts.phase, facts.engines
        followed, worker.connected, worker.seen_at = worker.connected, True, now
        self._nobody_late_before = -math.inf
        self._take_over(worker, facts.replicas, followed, now)
        self._refresh(worker)

    def sample(
        self, target: str, loads: Iterable[ModelLoad], age_s: float, now: float, device: Device = SOUND
    ) -> None:
        """A worker told its load, measured `age_s` ago, and how its accelerator is."""
        worker = self.workers.get(target)
        if worker is None or not worker.connected:
            return
        worker.seen_at = now
        worker.measured_at = now - age_s
        late_s = age_s - LATE * worker.interval_s
        self._nobody_late_before = min(self._nobody_late_before, now - late_s)
        late_s = max(0.0, late_s)
        moved = late_s != worker.late_s or device.strain_s != worker.device.strain_s
        worker.late_s = late_s
        told = {load.model: load for load in loads}
        changed = worker.stale or worker.device.faults != device.faults
        changed |= _doubt_ends(worker, worker.measured_at)
        worker.device = device
        for replica in worker.replicas.values():
            if _take_load(replica, told.get(replica.model, NO_LOADS)) or moved:
                replica.changed()
            changed |= _doubt_ends(replica, worker.measured_at)
        if changed:
            worker.stale = age_s > STALE * worker.interval_s
            self._refresh(worker)

    def lost(self, target: str, now: float) -> None:
        """The watch on a worker broke: it is out of the choice at once."""
        worker = self.workers.get(target)
        if worker is None or not worker.connected:
            return
        self._withdraw(worker)
        worker.connected = False
        worker.seen_at = now
        gone = tuple(worker.replicas.values())
        worker.replicas.clear()
        self._forget(gone)

    def doubt_worker(self, worker: Worker, now: float) -> None:
        """A request did not get through to it or was lost there."""
        worker.doubted_at = now
        self._refresh(worker)

    def doubt_replica(self, replica: Replica, now: float) -> None:
        """The worker refused a request because the model is not resident."""
        replica.doubted_at = now
        self._refresh(replica.worker)

    def find_stale(self, now: float) -> None:
        """Takes workers out whose load is no longer known; trusts those less that are late to tell it."""
        if now < self._nobody_late_before:
            return
        late_from = math.inf
        for worker in self.workers.values():
            if worker.stale or not worker.connected:
                continue
            age_s = now - worker.measured_at
            late_s = age_s - LATE * worker.interval_s
            late_from = min(late_from, now - late_s)
            if late_s <= 0.0:
                continue
            worker.late_s = late_s
            if age_s > STALE * worker.interval_s:
                worker.stale = True
                self._refresh(worker)
            else:
                for replica in worker.replicas.values():
                    replica.changed()
        self._nobody_late_before = late_from

    def expected_until(self, model: str, excluded: Collection[str], asked_at: float, now: float) -> float:
        """Until when a worker that may serve the model can be hoped for; 0 when there is no hope.

        What loads, or serves and is merely full, is hoped for without end: deadlines bound the wait. A worker
        that is up and failed the request is given a moment to say that its engine is being restarted.
        """
        until = self._awaited_since + self._patience_s
        for worker in self.workers.values():
            replica = worker.replicas.get(model)
            if replica is not None and not worker.veto:
                if replica.loading:
                    return math.inf
                if not replica.veto and (worker.id not in excluded or replica.since > asked_at):
                    return math.inf
            until = max(until, self._back_by(worker, replica))
            if worker.connected and worker.id in excluded:
                until = max(until, asked_at + RESTART_NOTICE_S)
        return until if until > now else 0.0

    def could_load(self, model: str, engines: frozenset[str]) -> bool:
        """Whether a worker that is up could come to hold the model."""
        return any(_could_load(worker, model, engines) for worker in self.workers.values())

    def engines(self) -> frozenset[str]:
        """Of all workers that are up."""
        return frozenset().union(*(worker.engines for worker in self.workers.values() if worker.connected))

    def still_serving(self, model: str, excluded: Collection[str]) -> frozenset[str]:
        """Those of the excluded workers that hold the model still."""
        return frozenset(r.worker.id for r in self.placeable(model) if r.worker.id in excluded)

    def vetoed(self, model: str, engines: frozenset[str], limit: int) -> Sequence[tuple[Worker, str, bool]]:
        """Workers that are out of the question for the model, why, and whether it could be loaded there."""
        key = model, engines, limit
        known = self._vetoed.get(key)
        if known is None:
            known = self._vetoed[key] = tuple(islice(self._vetoes(model, engines), limit))
        return known

    def _vetoes(self, model: str, engines: frozenset[str]) -> Iterator[tuple[Worker, str, bool]]:
        for worker in self.workers.values():
            replica = worker.replicas.get(model)
            veto = worker.veto or (replica.veto if replica else "the model is not resident")
            if veto:
                yield worker, veto, not worker.veto and _could_load(worker, model, engines)

    def _back_by(self, worker: Worker, replica: Replica | None) -> float:
        if not worker.connected or worker.stale or worker.doubted_at is not None:
            return worker.seen_at + self._patience_s
        if worker.phase is not Phase.READY:
            return worker.phase_since + self._patience_s
        doubted = replica is not None and replica.doubted_at is not None
        return worker.seen_at + self._patience_s if doubted else 0.0

    def _take_over(self, worker: Worker, told: tuple[ReplicaFacts, ...], followed: bool, now: float) -> None:
        """Brings the worker's replicas up to what it told; a new epoch is a new replica."""
        self._withdraw(worker)
        known, worker.replicas = worker.replicas, {}
        for facts in told:
            replica = known.get(facts.model)
            if replica is None or replica.epoch != facts.epoch:
                replica = Replica(worker, facts.model, facts.epoch, running=facts.running, since=now)
            limit = facts.max_sequences
            replica.max_sequences = limit
            replica.capacity = (
                limit + max(1, math.ceil(limit * self._engine_queue_ratio)) if limit else math.inf
            )
            replica.fingerprint, replica.features = facts.fingerprint, facts.features
            replica.block_size, replica.kv_blocks_total = facts.block_size, facts.kv_blocks_total
            if facts.state is ReplicaState.READY and not replica.serving:
                replica.since = now  # a restarted engine is a new life, though the epoch stays
                self._forget([replica])
            replica.serving = facts.state is ReplicaState.READY
            self._time_load(replica, facts.state is ReplicaState.LOADING, followed, now)
            replica.doubted_at = None
            worker.replicas[facts.model] = replica
        self._forget(old for old in known.values() if worker.replicas.get(old.model) is not old)

    def _time_load(self, replica: Replica, loading: bool, followed: bool, now: float) -> None:
        """One that was under way when the worker was first heard of says nothing."""
        if loading and not replica.loading:
            replica.loading_since = now if followed else None
        elif replica.loading and replica.serving and replica.loading_since is not None:
            self.load_times.learn(replica.model, now - replica.loading_since)
        replica.loading = loading

    def _forget(self, replicas: Iterable[Replica]) -> None:
        if self._roll is not None:
            for replica in replicas:
                self._roll.emptied(replica)

    def _refresh(self, worker: Worker) -> None:
        self._vetoed.clear()
        if self.workers.get(worker.target) is not worker:
            return  # a former life
        for replica in worker.replicas.values():
            if replica.veto:
                self._take_out(replica)
            else:
                self._placeable.setdefault(replica.model, {})[worker.target] = replica
                if self._roll is not None:
                    self._roll.appeared(replica)

    def _withdraw(self, worker: Worker) -> None:
        self._vetoed.clear()
        for replica in worker.replicas.values():
            self._take_out(replica)

    def _take_out(self, replica: Replica) -> None:
        serving = self._placeable.get(replica.model, {})
        if serving.pop(replica.worker.target, None) is None:
            return
        if not serving:
            del self._placeable[replica.model]
        if self._roll is not None:
            self._roll.vanished(replica)


def _take_load(replica: Replica, load: ModelLoad) -> bool:
    """Whether it says anything new."""
    _, running, waiting, queued_prefill_tokens, context_tokens, kv_blocks_used, steps = load
    if not steps and (
        running == replica.running
        and waiting == replica.waiting
        and queued_prefill_tokens == replica.queued_prefill_tokens
        and context_tokens == replica.context_tokens
        and kv_blocks_used == replica.kv_blocks_used
    ):
        return False
    replica.running, replica.waiting = running, waiting
    replica.queued_prefill_tokens = queued_prefill_tokens
    replica.context_tokens = context_tokens
    replica.kv_blocks_used = kv_blocks_used
    learn = replica.speed.learn
    for step in steps:
        learn(step)
    return True


def _could_load(worker: Worker, model: str, engines: frozenset[str]) -> bool:
    replica = worker.replicas.get(model)
    return (
        worker.connected
        and worker.phase in _LOADABLE
        and not worker.device.faults
        and not engines.isdisjoint(worker.engines)
        and not (replica is not None and replica.serving)
    )


def _doubt_ends(doubted: Worker | Replica, measured_at: float) -> bool:
    """Whether a doubt is contradicted by a sample measured after it arose."""
    if doubted.doubted_at is None or measured_at <= doubted.doubted_at:
        return False
    doubted.doubted_at = None
    return True
