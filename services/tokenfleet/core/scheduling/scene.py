"""What stood before the scheduler when it decided, so that the decision can be explained afterwards.

Every decision keeps its scene, few are ever asked for: so taking one costs a tuple a worker, and the words
are found when somebody asks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from tokenfleet.core.scheduling.choice import Choice, Forecast, Forecasts
from tokenfleet.core.scheduling.cold import ColdCost
from tokenfleet.core.scheduling.fleet import Fleet
from tokenfleet.core.scheduling.model import Replica, Worker


class Candidate(NamedTuple):
    """A worker as it stood when a decision was taken; `veto` says why it was out of the question."""

    worker_id: str
    zone: str
    running: int
    waiting: int  # what was sent there and not yet seen included
    veto: str
    forecast: Forecast | None = None
    cold: ColdCost | None = None  # what it would be if the model were loaded there


@dataclass(slots=True, eq=False)
class Scene:
    """Serving replicas with what ran and waited there, and the workers that were out of the question."""

    serving: list[tuple[Replica, int, int]]
    vetoed: list[tuple[Worker, str, bool]]  # why, and whether the model could be loaded there
    forecasts: Forecasts | None = None
    cold: ColdCost | None = None

    def candidates(self, excluded: Collection[str], features: frozenset[str]) -> list[Candidate]:
        """For people, as seen by a request with these exclusions and needs."""
        forecasts = {forecast.replica: forecast for forecast in self.forecasts or ()}
        found = []
        for replica, running, waiting in self.serving:
            worker = replica.worker
            veto = "" if running + waiting < replica.capacity else "full"
            if worker.id in excluded:
                veto = "it just failed this request"
            elif not features <= replica.features:
                veto = "it lacks a feature"
            forecast = forecasts.get(replica)
            if not veto and forecasts and forecast is None:
                veto = "its fingerprint or the objectives rule it out"
            found.append(Candidate(worker.id, worker.zone, running, waiting, veto, forecast))
        found += [
            Candidate(
                worker.id or worker.target, worker.zone, 0, 0, why, cold=self.cold if loadable else None
            )
            for worker, why, loadable in self.vetoed
        ]
        return found


def take_scene(
    fleet: Fleet, model: str, engines: frozenset[str], choice: Choice | None, cold: ColdCost, limit: int
) -> Scene:
    """At most `limit` workers, the chosen one among them; called before its place is reserved."""
    if not limit:
        return Scene([], [])
    forecasts = choice.forecasts if choice is not None else None
    serving: Collection[Replica] = fleet.placeable(model)
    if len(serving) > limit:
        serving = _most_telling(serving, choice, forecasts, limit)
    seen = [(replica, replica.running, replica.waiting + replica.reserved) for replica in serving]
    if len(seen) >= min(limit, len(fleet.workers)):
        return Scene(seen, [], forecasts)
    return Scene(seen, list(islice(fleet.vetoes(model, engines), limit - len(seen))), forecasts, cold)


def _most_telling(
    serving: Collection[Replica], choice: Choice | None, forecasts: Forecasts | None, limit: int
) -> Sequence[Replica]:
    """Those with the lowest predicted cost, or any; the chosen one first."""
    if forecasts is not None:
        return forecasts.replicas[:limit]
    if choice is None:
        return list(islice(serving, limit))
    others = (replica for replica in serving if replica is not choice.replica)
    return [choice.replica, *islice(others, limit - 1)]
