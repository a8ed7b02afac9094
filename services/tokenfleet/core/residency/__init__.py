"""Which model is to be resident where.

`Residency` is told what workers hold and what is wanted, and answers which worker shall load which model
next. It decides by itself for `warm` entries, on demand for `lazy` ones; failed loads wait out a `Backoff`.
"""

from tokenfleet.core.residency.backoff import Backoff, Quarantine
from tokenfleet.core.residency.demands import Demand, Demands, Settlement
from tokenfleet.core.residency.model import (
    EngineNeed,
    Entry,
    Failure,
    Host,
    HostFacts,
    LoadOrder,
    Place,
    PlaceState,
)
from tokenfleet.core.residency.residency import Residency

__all__ = [
    "Backoff",
    "Demand",
    "Demands",
    "EngineNeed",
    "Entry",
    "Failure",
    "Host",
    "HostFacts",
    "LoadOrder",
    "Place",
    "PlaceState",
    "Quarantine",
    "Residency",
    "Settlement",
]
