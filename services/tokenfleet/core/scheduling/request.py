"""What is asked of the scheduler, and what it may answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenfleet.core.queueing import Lane
from tokenfleet.core.scheduling.choice import Forecast
from tokenfleet.core.scheduling.model import Fingerprint, Replica, Reservation
from tokenfleet.core.scheduling.scene import Scene

NOTHING: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class Request:
    """A sequence that needs a worker. Times are absolute, in the caller's seconds."""

    request_id: str
    model: str
    lane: Lane
    asked_at: float
    deadline: float
    attempt: int = 1
    zone: str = ""
    engines: frozenset[str] = NOTHING  # that can serve the model, from the catalog
    excluded: frozenset[str] = NOTHING  # ids of workers that just failed this request
    features: frozenset[str] = NOTHING  # that the engine must have
    preferred: Fingerprint | None = None  # whose continuation would be alike
    tenant: str = ""
    prompt_tokens: int = 0
    max_tokens: int = 0  # of the answer; 0: no bound is known
    block_hashes: Sequence[int] = ()
    # Until the first token, and between two: what the client's class or the client itself wants.
    ttft_objective_s: float = math.inf
    itl_objective_s: float = math.inf

    @property
    def choosy(self) -> bool:
        """Whether it may be unable to go where any other request of its model could."""
        return bool(self.excluded or self.features)

    def suits(self, replica: Replica) -> bool:
        """An exclusion is about the engine that failed; one started since then has not failed anybody."""
        excluded = replica.worker.id in self.excluded and replica.since <= self.asked_at
        return not excluded and self.features <= replica.features


class LoadWish(NamedTuple):
    """A model wanted somewhere else than on the excluded workers; equal wishes share one load.

    With more than one replica it is a hot model's wish for a further copy: nobody depends on it.
    """

    model: str
    excluded: frozenset[str] = NOTHING
    replicas: int = 1


@dataclass(slots=True, eq=False)
class Placed:
    """The worker was chosen and the place on it is reserved."""

    reservation: Reservation
    why: str
    scene: Scene
    waited_s: float
    forecast: Forecast | None = None


@dataclass(slots=True, frozen=True)
class Queued:
    """The request waits; another decision follows."""

    position: int


@dataclass(slots=True, frozen=True)
class Loading:
    """The request waits for its model; `progress` is whatever the loader reported."""

    position: int
    progress: object


@dataclass(slots=True, frozen=True)
class Refused:
    """No worker, and why: `reason` is a stable lower-case name."""

    reason: str
    message: str
    retry_after_s: float
    waited_s: float
    scene: Scene
    missing_bytes: int = 0  # of memory for the model, where that is why


Decision = Placed | Queued | Loading | Refused
