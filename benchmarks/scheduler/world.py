"""A fleet under a virtual clock: the production scheduler in front of modelled engines.

Everything between them is as in production, and takes as long: asks, submits and releases cross a network,
load samples come at the router's interval and are as late as the network makes them, an id is retired by the
sample that contains it, a worker that dies is noticed when its connection breaks, and its sequences go on
elsewhere. There is no chance but the seed's, so a run can be repeated event for event.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.scheduler.arrivals import Arrival
from benchmarks.scheduler.sim_worker import ENGINE, MODEL, Machine, SimWorker
from tokenfleet.core.engine_model import Ending
from tokenfleet.core.scheduling import (
    Decision,
    Outcome,
    Placed,
    PredictionSettings,
    Refused,
    Request,
    Reservation,
    Scheduler,
    SchedulerLimits,
    make_policy,
)
from tokenfleet.core.scheduling.sampling import sample_interval_ms

# One way, between any two services.
NETWORK_S = 0.001
TICK_S = 0.05
# Between the end of a process and the moment the others see its connections break.
NOTICE_S = 0.005
MOST_ATTEMPTS = 5


@dataclass(slots=True, eq=False)
class Served:
    """What became of one arrival. Times are absolute; -1: it did not happen."""

    arrival: Arrival
    workers: list[str] = field(default_factory=list)  # of each attempt
    placed_at: float = -1.0
    first_at: float = -1.0
    ended_at: float = -1.0
    computed_tokens: int = 0  # of the prompt, what no cache held
    predicted_ttft_s: float = 0.0
    generated: int = 0
    refused: str = ""

    @property
    def ttft_s(self) -> float:
        return self.first_at - self.arrival.at

    @property
    def itl_s(self) -> float:
        """Mean time between tokens."""
        return (self.ended_at - self.first_at) / max(1, self.arrival.answer_tokens - 1)

    @property
    def complete(self) -> bool:
        return self.ended_at >= 0.0 and self.generated == self.arrival.answer_tokens


@dataclass(slots=True, eq=False)
class Asked(Request):
    """A request and whose it is."""

    served: Served | None = None


class World:
    """`run` takes arrivals and answers what became of them."""

    def __init__(
        self,
        machines: Iterable[Machine],
        policy: str = "predicted",
        seed: int = 1,
        *,
        prediction: PredictionSettings | None = None,
        limits: SchedulerLimits | None = None,
    ) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.served: list[Served] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._open = 0
        self.scheduler: Scheduler[Asked] = Scheduler(
            make_policy(policy, prediction),
            limits or SchedulerLimits(candidates_recorded=0),
            draw=self.random.random,
            decide=self._decided,
            start_load=lambda wish: None,
        )
        machines = tuple(machines)
        interval_s = sample_interval_ms(len(machines)) / 1000
        self.workers = {machine.name: SimWorker(self, machine, interval_s) for machine in machines}
        for worker in self.workers.values():
            self.scheduler.describe(worker.name, worker.facts(), self.now)
            self.at(self.random.random() * interval_s, worker.publish)

    # -- time --------------------------------------------------------------------------------------

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.at(self.now + seconds, action)

    def run(self, arrivals: Sequence[Arrival], limit_s: float = 3600.0) -> list[Served]:
        """Until everything that arrives has ended; raises TimeoutError when that is not before `limit_s`."""
        self._open += len(arrivals)
        for arrival in arrivals:
            self.at(arrival.at, lambda arrival=arrival: self._arrived(arrival))  # type: ignore[misc]
        self._tick()
        while self._open:
            when, _, action = heapq.heappop(self._events)
            if when > limit_s:
                raise TimeoutError(f"{self._open} requests have not ended after {limit_s} virtual seconds")
            self.now = when
            action()
        return self.served

    def settle(self, seconds: float) -> None:
        """Lets time pass in which nothing arrives."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()

    def _tick(self) -> None:
        self.scheduler.tick(self.now)
        self.after(TICK_S, self._tick)

    # -- what happens to workers -------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """At this moment; for good."""
        worker = self.workers[name]
        broken = worker.die()
        self.after(NOTICE_S, lambda: self.scheduler.lost(name, self.now))
        for request, reservation, generated in broken:
            self.after(NOTICE_S, lambda r=request, v=reservation, g=generated: self._broke(r, v, g))  # type: ignore[misc]

    # -- the gateway -------------------------------------------------------------------------------

    def _arrived(self, arrival: Arrival) -> None:
        served = Served(arrival)
        self.served.append(served)
        self._ask(served, attempt=1, excluded=frozenset())

    def _ask(self, served: Served, attempt: int, excluded: frozenset[str]) -> None:
        arrival = served.arrival
        request = Asked(
            request_id=f"r{len(self.served)}",
            model=MODEL,
            lane=arrival.lane,
            asked_at=self.now,
            deadline=arrival.at + arrival.deadline_s,
            attempt=attempt,
            zone=arrival.zone,
            engines=frozenset({ENGINE}),
            excluded=excluded,
            tenant=arrival.tenant,
            prompt_tokens=arrival.prompt_tokens + served.generated,
            max_tokens=0,
            block_hashes=arrival.block_hashes,
            served=served,
        )
        self.after(NETWORK_S, lambda: self.scheduler.ask(request, self.now))

    def _decided(self, request: Asked, decision: Decision) -> None:
        served = request.served
        assert served is not None
        if isinstance(decision, Refused):
            served.refused = decision.reason
            self._open -= 1
        elif isinstance(decision, Placed):
            served.placed_at = self.now
            if decision.forecast is not None and request.attempt == 1:
                served.predicted_ttft_s = decision.forecast.ttft_s
            name = decision.reservation.replica.worker.target
            served.workers.append(name)
            worker = self.workers[name]
            self.after(2 * NETWORK_S, lambda: worker.submit(request, decision.reservation))

    def ended(self, request: Asked, reservation: Reservation, ending: Ending, generated: int) -> None:
        """The worker's last word."""
        served = request.served
        assert served is not None
        served.generated += generated
        served.ended_at = self.now
        self._open -= 1
        if ending is Ending.LENGTH:
            self.scheduler.policy.answered(request, served.generated)
        self.after(NETWORK_S, lambda: self.scheduler.release(reservation, Outcome.ENDED, self.now))

    def refused_by(self, request: Asked, reservation: Reservation) -> None:
        """There was nobody at the address any more."""
        self.after(NETWORK_S, lambda: self._broke(request, reservation, 0))

    def _broke(self, request: Asked, reservation: Reservation, generated: int) -> None:
        served = request.served
        assert served is not None
        served.generated += generated
        worker = reservation.replica.worker
        self.scheduler.release(reservation, Outcome.LOST, self.now)
        if request.attempt >= MOST_ATTEMPTS:
            served.refused = "worker_lost"
            self._open -= 1
            return
        self._ask(served, request.attempt + 1, request.excluded | {worker.id})
