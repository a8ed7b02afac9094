"""Which cores a benchmark may use: one for what is measured, one for everything around it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


class TooFewCores(Exception):
    """There is no second core to keep the load away from what is measured."""


@dataclass(frozen=True, slots=True)
class Cores:
    measured: int
    load: int


def choose_cores() -> Cores:
    """Two cores that do not share their execution units, where there are such. Raises TooFewCores."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise TooFewCores("two cores are needed: one for the gateway alone, one for the load and the workers")
    first = allowed[0]
    apart = [core for core in allowed[1:] if core not in _siblings(first)]
    return Cores(measured=first, load=(apart or allowed[1:])[0])


def _siblings(core: int) -> set[int]:
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    if not path.exists():
        return {core}
    siblings: set[int] = set()
    for part in path.read_text(encoding="ascii").strip().split(","):
        first, _, last = part.partition("-")
        siblings.update(range(int(first), int(last or first) + 1))
    return siblings
