"""What stood before the scheduler when it decided, so that the decision can be explained afterwards.

Every decision keeps its scene, few are ever asked for: so taking one costs a tuple a worker, and the words
are found when somebody asks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from tokenfleet.core.scheduling.fleet import Fleet
from tokenfleet.core.scheduling.model import Replica, Worker


class Candidate(NamedTuple):
    """A worker as it stood when a decision was taken; `veto` says why it was out of the question."""

    worker_id: str
    zone: str
    running: int
    waiting: int  # what was sent there and not yet seen included
    veto: str


@dataclass(slots=True, eq=False)
class Scene:
    """Serving replicas with what ran and waited there, and the workers that were out of the question."""

    serving: list[tuple[Replica, int, int]]
    vetoed: list[tuple[Worker, str]]

    def candidates(self, excluded: Collection[str], features: frozenset[str]) -> list[Candidate]:
        """For people, as seen by a request with these exclusions and needs."""
        found = []
        for replica, running, waiting in self.serving:
            worker = replica.worker
            veto = "" if running + waiting < replica.capacity else "full"
            if worker.id in excluded:
                veto = "it just failed this request"
            elif not features <= replica.features:
                veto = "it lacks a feature"
            found.append(Candidate(worker.id, worker.zone, running, waiting, veto))
        found += [
            Candidate(worker.id or worker.target, worker.zone, 0, 0, why) for worker, why in self.vetoed
        ]
        return found


def take_scene(fleet: Fleet, model: str, chosen: Replica | None, limit: int) -> Scene:
    """At most `limit` workers, the chosen one among them; called before its place is reserved."""
    if not limit:
        return Scene([], [])
    serving = fleet.placeable(model)
    if len(serving) > limit:
        others = (replica for replica in serving if replica is not chosen)
        serving = [*([chosen] if chosen is not None else []), *islice(others, limit - 1)]
    seen = [(replica, replica.running, replica.waiting + replica.reserved) for replica in serving]
    if len(seen) >= min(limit, len(fleet.workers)):
        return Scene(seen, [])
    return Scene(seen, list(islice(fleet.vetoes(model), limit - len(seen))))
