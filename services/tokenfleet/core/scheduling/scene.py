"""What stood before the scheduler when it decided, so that the decision can be explained afterwards.

Every decision keeps its scene, few are ever asked for: so taking one costs a tuple a worker, and the words
are found when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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

    serving: Sequence[tuple[Replica, int, int]]
    vetoed: Sequence[tuple[Worker, str, bool]]  # why, and whether the model could be loaded there
    forecasts: Forecasts | None = None
    cold: ColdCost | None = None
    limit: int = 0  # of serving replicas told, where they are those with forecasts

    def candidates(self, excluded: Collection[str], features: frozenset[str]) -> list[Candidate]:
        """For people, as seen by a request with these exclusions and needs."""
        forecasts = {forecast.replica: forecast for forecast in self.forecasts or ()}
        found = []
        serving = self.serving if self.forecasts is None else self.forecasts.serving(self.limit)
        for replica, running, waiting in serving:
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
    fleet: Fleet,
    model: str,
    engines: frozenset[str],
    choice: Choice | None,
    cold: Callable[[], ColdCost],
    limit: int,
) -> Scene:
    """At most `limit` workers, the chosen one among them; called before its place is reserved."""
    if not limit:
        return Scene((), ())
    forecasts = choice.forecasts if choice is not None else None
    seen = () if forecasts is not None else _seen(fleet.placeable(model), choice, limit)
    left = min(limit, len(fleet.workers)) - (len(seen) if forecasts is None else len(forecasts))
    if left <= 0:
        return Scene(seen, (), forecasts, None, limit)
    vetoed = fleet.vetoed(model, engines, left)
    return Scene(seen, vetoed, forecasts, cold() if vetoed else None, limit)


def _seen(
    serving: Collection[Replica], choice: Choice | None, limit: int
) -> Sequence[tuple[Replica, int, int]]:
    """What runs and waits on serving replicas, on the chosen one first where not all can be told."""
    if len(serving) > limit and choice is not None:
        others = (replica for replica in serving if replica is not choice.replica)
        serving = [choice.replica, *islice(others, limit - 1)]
    return [(each, each.running, each.waiting + each.reserved) for each in islice(serving, limit)]
