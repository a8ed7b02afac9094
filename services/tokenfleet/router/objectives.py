"""How soon the classes want their first token, and how soon each further one; a request may want more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tokenfleet.v1 import common_pb2, router_pb2

CLASSES = {
    "interactive": common_pb2.PRIORITY_INTERACTIVE,
    "standard": common_pb2.PRIORITY_STANDARD,
    "batch": common_pb2.PRIORITY_BATCH,
}


class Objectives:
    """In seconds, by class; infinite where nothing is wanted."""

    def __init__(self, ttft: Mapping[str, float], itl: Mapping[str, float]) -> None:
        self._ttft, self._itl = _by_priority(ttft), _by_priority(itl)

    def ttft_s(self, ask: router_pb2.Ask) -> float:
        objective = self._ttft[ask.context.priority]
        return min(ask.ttft_objective_s, objective) if ask.ttft_objective_s > 0 else objective

    def itl_s(self, ask: router_pb2.Ask) -> float:
        objective = self._itl[ask.context.priority]
        return min(ask.itl_objective_s, objective) if ask.itl_objective_s > 0 else objective


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
