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


@dataclass(slots=True)
class Place:
    """A model on a worker."""

    model: str
    state: PlaceState
    epoch: int = 0
    memory_bytes: int = 0
    failure: Failure | None = None

    @property
    def absent(self) -> bool:
        """Whether it takes a load to have it there."""
        return self.state in (PlaceState.FAILED, PlaceState.ASLEEP)


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


@dataclass(slots=True, eq=False)
class Host:
    """A worker at an address. While it is away, `facts` are of its last life."""

    target: str
    seen_at: float
    connected: bool = False
    facts: HostFacts = HostFacts("")
    places: dict[str, Place] = field(default_factory=dict)
    loading: LoadOrder | None = None  # one at a time
    rests_until: float = 0.0  # a load broke off there: its watch has yet to say whether it lives

    @property
    def usable(self) -> bool:
        return self.connected and self.facts.accepts

    def engine_for(self, entry: Entry) -> EngineNeed | None:
        """The entry's first engine that the worker hosts."""
        return next((need for need in entry.engines if need.engine in self.facts.engines), None)

    def holds(self, model: str, *states: PlaceState) -> bool:
        place = self.places.get(model)
        return place is not None and place.state in states

    def busy_with(self, model: str) -> bool:
        """Whether the model is on its way there."""
        return (self.loading is not None and self.loading.model == model) or self.holds(
            model, PlaceState.LOADING
        )

    @property
    def free_bytes(self) -> float:
        """What the budget leaves; infinite when the worker names none."""
        if not self.facts.memory_budget_bytes:
            return math.inf
        return self.facts.memory_budget_bytes - self.taken_bytes

    @property
    def taken_bytes(self) -> int:
        return sum(place.memory_bytes for place in self.places.values() if not place.absent)


@dataclass(slots=True, frozen=True)
class LoadOrder:
    """One worker shall load one model."""

    model: str
    engine: str
    target: str
    worker_id: str
