"""One model in this worker's memory: its engine, its epoch, who uses it."""

from __future__ import annotations

from dataclasses import dataclass

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
    failure: FleetError | None = None
    warm_id: int = 0  # a token with text, for the canary

    def describe(self) -> worker_pb2.ResidentModel:
        described = worker_pb2.ResidentModel(
            model=self.name,
            state=self.state,
            residency_epoch=self.epoch,
            block_size=self.block_size,
            running=self.running,
            memory_bytes=self.reserved_bytes,
        )
        if self.facts is not None:
            described.fingerprint.CopyFrom(self.facts.fingerprint)
            described.max_sequences = self.facts.max_sequences
            described.kv_blocks_total = self.facts.kv_blocks_total
            described.context_length = self.facts.context_length
            described.memory_bytes = self.facts.memory_bytes or self.reserved_bytes
        if self.engine is not None:
            described.features.extend(sorted(self.engine.features))
        if self.failure is not None:
            described.failure.CopyFrom(self.failure.to_failure())
        return described

    def not_resident(self) -> FleetError:
        """Why a sequence is refused while the state is not READY."""
        state = State.State.Name(self.state).removeprefix("STATE_").lower()
        return FleetError(common_pb2.REASON_NOT_RESIDENT, f"model {self.name} is {state} on this worker")
