"""One model in this worker's memory: its engine, its epoch, who uses it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.engines.base import Engine, EngineFacts
from tokenfleet.worker.text_assembler import Pieces

State = worker_pb2.ResidentModel


@dataclass(slots=True, eq=False)
class Resident:
    """`running` is its lease count: while it is above zero, an idle unload is refused."""

    name: str
    epoch: int
    engine_name: str
    reserved_bytes: int  # of the worker's budget
    state: worker_pb2.ResidentModel.State.ValueType = State.STATE_LOADING
    engine: Engine | None = None
    facts: EngineFacts | None = None
    pieces: Pieces | None = None
    block_size: int = 0
    running: int = 0
    arrivals: int = 0  # sequences that came, over all its engine's lives
    last_used: float = field(default_factory=time.monotonic)  # when one last ended
    closed: bool = False  # on its way out, and past the moment up to which it takes sequences
    down: bool = False  # its engine died and is not back
    occupied_bytes: int = 0  # by which this worker's processes grew with it
    failure: FleetError | None = None
    warm_id: int = 0  # a token with text, for the canary

    @property
    def accepts(self) -> bool:
        """Whether it takes sequences: also for a moment after the word that it leaves."""
        return self.state == State.STATE_READY or (
            self.state == State.STATE_UNLOADING and not self.closed and not self.down
        )

    @property
    def held_bytes(self) -> int:
        """What it takes of the worker's budget: what it reserved, or what it was measured to take."""
        if self.state == State.STATE_FAILED:
            return 0
        if self.facts is None:
            return self.reserved_bytes
        if self.state == State.STATE_ASLEEP and self.facts.sleep is not None:
            return self.facts.sleep.asleep_bytes
        return max(self.reserved_bytes, self.facts.memory_bytes)

    @property
    def awake_bytes(self) -> int:
        return max(self.reserved_bytes, self.facts.memory_bytes if self.facts is not None else 0)

    def idle_s(self, now: float) -> float:
        return 0.0 if self.running else max(0.0, now - self.last_used)

    def describe(self) -> worker_pb2.ResidentModel:
        described = worker_pb2.ResidentModel(
            model=self.name,
            state=self.state,
            residency_epoch=self.epoch,
            block_size=self.block_size,
            running=self.running,
            memory_bytes=self.reserved_bytes,
            reserved_bytes=self.awake_bytes,
        )
        if self.facts is not None:
            described.fingerprint.CopyFrom(self.facts.fingerprint)
            described.max_sequences = self.facts.max_sequences
            described.kv_blocks_total = self.facts.kv_blocks_total
            described.context_length = self.facts.context_length
            described.memory_bytes = self.facts.memory_bytes or self.reserved_bytes
            if self.facts.sleep is not None:
                described.features.append("sleep")
                described.sleep.asleep_bytes = self.facts.sleep.asleep_bytes
                described.sleep.wake_ms = round(self.facts.sleep.wake_s * 1000)
        if self.engine is not None:
            described.features.extend(sorted(self.engine.features))
        if self.failure is not None:
            described.failure.CopyFrom(self.failure.to_failure())
        return described

    def not_resident(self) -> FleetError:
        """Why a sequence is refused while the state is not READY."""
        state = State.State.Name(self.state).removeprefix("STATE_").lower()
        return FleetError(common_pb2.REASON_NOT_RESIDENT, f"model {self.name} is {state} on this worker")
