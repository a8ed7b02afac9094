"""How soon the classes want their first token, and how soon each further one; a request may want more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tokenfleet.v1 import common_pb2

CLASSES = {
    "interactive": common_pb2.PRIORITY_INTERACTIVE,
    "standard": common_pb2.PRIORITY_STANDARD,
    "batch": common_pb2.PRIORITY_BATCH,
}


class Objectives:
    """In seconds, by class; infinite where nothing is wanted. `wanted_s`: by the request itself, or 0."""

    def __init__(self, ttft: Mapping[str, float], itl: Mapping[str, float]) -> None:
        self._ttft, self._itl = _by_priority(ttft), _by_priority(itl)

    def ttft_s(self, priority: common_pb2.Priority.ValueType, wanted_s: float) -> float:
        objective_s = self._ttft[priority]
        return min(wanted_s, objective_s) if wanted_s > 0 else objective_s

    def itl_s(self, priority: common_pb2.Priority.ValueType, wanted_s: float) -> float:
        objective_s = self._itl[priority]
        return min(wanted_s, objective_s) if wanted_s > 0 else objective_s


def parse_objectives(pairs: Sequence[str]) -> dict[str, float]:
    """CLASS=SECONDS, each class at most once. Raises ValueError that says what is wrong."""
    found: dict[str, float] = {}
    for pair in pairs:
        name, equals, seconds = pair.partition("=")
        if not equals or name not in CLASSES:
            raise ValueError(f"{pair!r} is not CLASS=SECONDS with a class of {', '.join(CLASSES)}")
        if name in found:
            raise ValueError(f"{name} is given twice")
        try:
            found[name] = float(seconds)
        except ValueError:
            found[name] = math.nan
        if not found[name] > 0:
            raise ValueError(f"{pair!r}: {seconds!r} is no number of seconds above 0")
    return found


def _by_priority(named: Mapping[str, float]) -> dict[common_pb2.Priority.ValueType, float]:
    found = {priority: named.get(name, math.inf) for name, priority in CLASSES.items()}
    return found | {common_pb2.PRIORITY_UNSPECIFIED: found[common_pb2.PRIORITY_STANDARD]}
