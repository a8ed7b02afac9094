"""Catalog entries and workers, as far as residency depends on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


@dataclass(slots=True, frozen=True)
class EngineNeed:
    """What the model needs on one engine."""

    engine: str
    memory_bytes: int = 0  # weights and KV; 0: not known


@dataclass(slots=True, frozen=True)
class Entry:
    """A catalog entry. `engines` in order of preference."""

    name: str
    engines: tuple[EngineNeed, ...]
    warm: bool = False
    replicas: int = 0  # workers that shall hold it when warm; 0: all that can


class PlaceState(StrEnum):
    """A model's state on a worker."""

    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    ASLEEP = "asleep"
    FAILED = "failed"


class Failure(NamedTuple):
    """What went wrong. `reason` is a stable lower-case name."""

    reason: str
    message: str


class SleepCosts(NamedTuple):
    """What it means to put a model to sleep instead of unloading it."""

    asleep_bytes: int  # of the budget that it keeps
    wake_s: float


@dataclass(slots=True)
class Place:
    """A model on a worker."""

    model: str
    state: PlaceState
    epoch: int = 0
    memory_bytes: int = 0  # of the worker's budget, while it is awake
    failure: Failure | None = None
    engine: str = ""
    sleep: SleepCosts | None = None  # where its engine can

    @property
    def absent(self) -> bool:
        """Whether it takes a load to have it there."""
        return self.state in (PlaceState.FAILED, PlaceState.ASLEEP)

    @property
    def held_bytes(self) -> int:
        """What it takes of the budget now."""
        if self.state is PlaceState.FAILED:
            return 0
        if self.state is PlaceState.ASLEEP and self.sleep is not None:
            return self.sleep.asleep_bytes
        return self.memory_bytes


@dataclass(slots=True)
class Use:
    """How a model is used on a worker, by the worker's own count."""

    epoch: int
    since: float  # when it was first seen to be ready
    last_used: float
    running: int = 0
    arrivals: int = 0  # sequences since it was loaded
    held_to: float = 0.0  # not evicted before, whatever else


@dataclass(slots=True, frozen=True)
class HostFacts:
    """What a worker says of itself. `accepts`: it takes orders, so it is not draining or broken."""

    worker_id: str
    name: str = ""
    zone: str = ""
    accepts: bool = True
    engines: frozenset[str] = frozenset()
    memory_budget_bytes: int = 0  # 0: not known
    places: tuple[Place, ...] = ()


@dataclass(slots=True, frozen=True)
class LoadOrder:
    """One worker shall load one model, or wake it up."""

    model: str
    engine: str
    target: str
    worker_id: str
    bytes: int = 0  # of the budget that it is going to take in addition
    wake: bool = False


@dataclass(slots=True, frozen=True)
class UnloadOrder:
    """One worker shall let go of one model, unless it was used since."""

    model: str
    target: str
    worker_id: str
    epoch: int
    idle_s: float  # for which it was idle, as far as is known
    cause: str  # memory, removed, surplus or idle
    sleep: bool = False
    for_model: str = ""  # that needs the memory
    arrivals: int = 0  # sequences that had come for it, as far as is known


@dataclass(slots=True, frozen=True)
class Claim:
    """Memory that is being cleared on a worker: nobody else may take it."""

    model: str
    engine: str
    bytes: int


@dataclass(slots=True, eq=False)
class Host:
    """A worker at an address. While it is away, `facts` are of its last life."""

    target: str
    seen_at: float
    connected: bool = False
    facts: HostFacts = HostFacts("")
    places: dict[str, Place] = field(default_factory=dict)
    uses: dict[str, Use] = field(default_factory=dict)
    loading: LoadOrder | None = None  # one at a time
    load_began: float = 0.0
    unloading: dict[str, UnloadOrder] = field(default_factory=dict)
    claim: Claim | None = None
    rests_until: float = 0.0  # a load broke off there: its watch has yet to say whether it lives
    sampled_at: float = -math.inf  # when it last told how its models are used
    doubted_at: float = -math.inf  # when it contradicted what was known of that

    @property
    def usable(self) -> bool:
        return self.connected and self.facts.accepts

    @property
    def name(self) -> str:
        return self.facts.name or self.target

    def engine_for(self, entry: Entry) -> EngineNeed | None:
        """The entry's first engine that the worker hosts."""
        return next((need for need in entry.engines if need.engine in self.facts.engines), None)

    def holds(self, model: str, *states: PlaceState) -> bool:
        place = self.places.get(model)
        return place is not None and place.state in states

    def serves(self, model: str) -> bool:
        """Ready there, and not about to leave."""
        return self.usable and self.holds(model, PlaceState.READY) and model not in self.unloading

    def busy_with(self, model: str) -> bool:
        """Whether the model is on its way there."""
        return (self.loading is not None and self.loading.model == model) or self.holds(
            model, PlaceState.LOADING
        )

    def awaits(self, model: str) -> bool:
        """Whether it is on its way there, or memory is being cleared for it."""
        return self.busy_with(model) or self.clears_for(model)

    def clears_for(self, model: str) -> bool:
        return self.claim is not None and self.claim.model == model

    @property
    def busy(self) -> bool:
        """Whether a load has to wait for its turn."""
        return self.loading is not None

    @property
    def free_bytes(self) -> float:
        """What the budget leaves; infinite when the worker names none."""
        if not self.facts.memory_budget_bytes:
            return math.inf
        return self.facts.memory_budget_bytes - self.taken_bytes

    @property
    def taken_bytes(self) -> int:
        """By what is there, and by what was ordered and does not show yet."""
        taken = sum(place.held_bytes for place in self.places.values())
        order = self.loading
        if order is not None and not self.holds(order.model, PlaceState.LOADING, PlaceState.READY):
            taken += order.bytes
        return taken
