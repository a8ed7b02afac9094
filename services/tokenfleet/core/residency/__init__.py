"""Which model is to be resident where.

`Residency` is told what workers hold, how it is used and what is wanted, and answers which worker shall
load which model next, and let go of which. It decides by itself for pinned entries, on demand for the others;
failed loads wait out a `Backoff`. Its parts: `planning` decides, `room` knows what may go, `eviction` which
of that goes first, `popularity` what its loss would cost.
"""

from tokenfleet.core.residency.backoff import Backoff, Quarantine
from tokenfleet.core.residency.demands import Demand, Demands, Settlement
from tokenfleet.core.residency.eviction import POLICIES
from tokenfleet.core.residency.model import (
    EngineNeed,
    Entry,
    Failure,
    Host,
    HostFacts,
    LoadOrder,
    Place,
    PlaceState,
    SleepCosts,
    UnloadOrder,
)
from tokenfleet.core.residency.residency import Limits, Plan, Residency, Shortage

__all__ = [
    "POLICIES",
    "Backoff",
    "Demand",
    "Demands",
    "EngineNeed",
    "Entry",
    "Failure",
    "Host",
    "HostFacts",
    "Limits",
    "LoadOrder",
    "Place",
    "PlaceState",
    "Plan",
    "Quarantine",
    "Residency",
    "Settlement",
    "Shortage",
    "SleepCosts",
    "UnloadOrder",
]
