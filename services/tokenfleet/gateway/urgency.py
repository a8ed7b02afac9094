"""How pressing a request is: whom it waits for, and what it is to be spared on a worker that is busy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenfleet.gateway.http.errors import invalid
from tokenfleet.v1 import common_pb2 as pb

PRIORITIES = {
    "interactive": pb.PRIORITY_INTERACTIVE,
    "standard": pb.PRIORITY_STANDARD,
    "batch": pb.PRIORITY_BATCH,
}


@dataclass(slots=True, frozen=True)
class Urgency:
    """Objectives are in seconds and can only tighten those of the class; 0: those."""

    priority: pb.Priority.ValueType = pb.PRIORITY_STANDARD
    ttft_objective_s: float = 0.0
    itl_objective_s: float = 0.0


STANDARD = Urgency()


def priority_named(name: object, field: str) -> pb.Priority.ValueType:
    """The class of that name; None is the standard one. Raises FleetError."""
    if name is None:
        return pb.PRIORITY_STANDARD
    if not isinstance(name, str) or name not in PRIORITIES:
        raise invalid(field, f"{field}: {str(name)[:32]!r} is none of {', '.join(PRIORITIES)}")
    return PRIORITIES[name]


def objective_s(seconds: object, field: str) -> float:
    """None is no objective of one's own. Raises FleetError."""
    if seconds is None:
        return 0.0
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise invalid(field, f"{field}: {str(seconds)[:32]!r} is no number of seconds above 0")
    return float(seconds)
