"""Workers, the models they hold, and the places reserved there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import NamedTuple, Protocol

from tokenfleet.core.scheduling.sampling import LONGEST_SILENCE_S
from tokenfleet.core.scheduling.speed import StepSpeed


class Phase(StrEnum):
    """A worker's life as it tells it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Outcome(Enum):
    """What the end of a request says about the worker it was on."""

    ENDED = "ended"  # nothing
    LOST = "lost"  # the worker was not reached, or the connection to it broke
    NOT_RESIDENT = "not_resident"  # the worker does not hold the model


class Fingerprint(NamedTuple):
    """Workers of equal fingerprint are expected to continue each other's sequences alike."""

    engine: str
    engine_version: str
    weights_digest: str
    dtype: str


UNKNOWN_FINGERPRINT = Fingerprint("", "", "", "")

# What a device that is throttled, or nearly out of memory, is considered to cost a request: something is
# about to happen there which its steps do not show yet.
STRAIN_S = 0.25
MEMORY_SHORT = 0.99


class Device(NamedTuple):
    """What a worker's accelerator says of itself."""

    faults: tuple[str, ...] = ()
    throttled: bool = False
    memory_used: float = 0.0  # share of all; 0: unknown

    @property
    def strain_s(self) -> float:
        """Seconds by which it should be avoided, though it works."""
        return STRAIN_S * (self.throttled + (self.memory_used > MEMORY_SHORT))


SOUND = Device()


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process, or the address where one is expected.

    `target` is the address, `id` is unique among all lives of all workers. `seen_at` is when it last proved
    to be alive, `measured_at` when its load was last measured.
    """

    target: str
    seen_at: float
    id: str = ""
    name: str = ""
    zone: str = ""
    phase: Phase = Phase.STARTING
    phase_since: float = 0.0
    engines: frozenset[str] = frozenset()
    connected: bool = False
    stale: bool = False
    measured_at: float = 0.0
    interval_s: float = LONGEST_SILENCE_S  # at which it is to tell its load, at the longest
    late_s: float = 0.0  # by how much its load sample is older than it should be
    device: Device = SOUND
    doubted_at: float | None = None  # a request failed there and no later sample contradicts
    replicas: dict[str, Replica] = field(default_factory=dict)

    @property
    def veto(self) -> str:
        """Why nothing may be sent to it; empty: it may."""
        if not self.connected:
            return "not connected"
        if self.phase is not Phase.READY:
            return str(self.phase)
        if self.stale:
            return "its load sample is stale"
        if self.device.faults:
            return f"its accelerator is faulty: {', '.join(self.device.faults)}"
        if self.doubted_at is not None:
            return "a request just failed there"
        return ""


class Observer(Protocol):
    """Hears of a replica whatever a choice may depend on."""

    def changed(self, replica: Replica) -> None:
        """Its load, its reservations or its speed are not what they were."""


@dataclass(slots=True, eq=False)
class Replica:
    """One model on one worker. `capacity` counts sequences, a short engine queue included."""

    worker: Worker
    model: str
    epoch: int
    capacity: float = math.inf
    max_sequences: int = 0  # 0: no known bound
    fingerprint: Fingerprint = UNKNOWN_FINGERPRINT
    features: frozenset[str] = frozenset()
    serving: bool = False
    loading: bool = False
    loading_since: float | None = None  # where it was seen to begin
    since: float = 0.0  # when this life of the model on the worker was first heard of
    doubted_at: float | None = None  # it refused a request as not resident and no later sample came
    running: int = 0
    waiting: int = 0
    reserved: int = 0  # sent there and neither seen by a sample nor ended
    queued_prefill_tokens: int = 0  # admitted or waiting, not computed yet
    context_tokens: int = 0  # of all running sequences
    reserved_prefill_tokens: int = 0  # what comes on top with the reserved ones
    reserved_context_tokens: int = 0
    block_size: int = 0  # tokens; 0: it caches no prefixes
    kv_blocks_total: int = 0  # 0: no known bound
    kv_blocks_used: int = 0
    speed: StepSpeed = field(default_factory=StepSpeed)
    observer: Observer | None = None

    @property
    def tells_cache(self) -> bool:
        """Whether the engine says what its prefix cache holds, so that nobody has to guess."""
        return "cache_events" in self.features

    def changed(self) -> None:
        if self.observer is not None:
            self.observer.changed(self)

    @property
    def load(self) -> int:
        return self.running + self.waiting + self.reserved

    @property
    def veto(self) -> str:
        """Why nothing may be sent to it; empty: it may, room permitting."""
        if self.worker.veto:
            return self.worker.veto
        if self.loading:
            return "the model is loading"
        if not self.serving:
            return "the model is not ready there"
        return "it just refused the model as not resident" if self.doubted_at is not None else ""


@dataclass(slots=True, eq=False)
class Reservation:
    """One place on one replica, from the choice until its request ended."""

    id: str
    replica: Replica
    made_at: float
    prefill_tokens: int = 0  # that the request is expected to compute there
    context_tokens: int = 0  # that it holds once it has
    counted: bool = True  # the replica's load does not show it yet, so `reserved` does
