"""Workers and requests around the loader's policy, in virtual time.

The workers here are the truth, and the policy learns of it as the loader does: by samples that come late,
and by how its orders end. A worker refuses an order to unload what is in use or was used since. It never
holds more than its memory: a load for which there is none is a mistake of the policy, and counted.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tokenfleet.core.residency import (
    EngineNeed,
    Entry,
    HostFacts,
    Limits,
    LoadOrder,
    Place,
    PlaceState,
    Residency,
    Settlement,
    SleepCosts,
    UnloadOrder,
)

ENGINE = "sim"
LATENCY_S = 0.002
SAMPLE_S = 0.5
TICK_S = 0.25
LINGER_S = 0.1  # between the word that a model leaves and its leaving
UNLOAD_S = 0.2


@dataclass(slots=True, frozen=True)
class Model:
    """`sleep_bytes` below zero: its engine cannot sleep."""

    name: str
    memory_bytes: int
    load_s: float
    warm: bool = False
    sleep_bytes: int = -1
    wake_s: float = 0.0

    def entry(self) -> Entry:
        return Entry(self.name, (EngineNeed(ENGINE, self.memory_bytes),), self.warm)


@dataclass(slots=True)
class Held:
    """A model on a worker, as it really is."""

    model: Model
    epoch: int
    state: PlaceState
    running: int = 0
    last_used: float = 0.0
    ready_at: float = math.inf
    arrivals: int = 0

    @property
    def bytes(self) -> int:
        return self.model.sleep_bytes if self.state is PlaceState.ASLEEP else self.model.memory_bytes


@dataclass(slots=True)
class Worker:
    target: str
    budget: int
    held: dict[str, Held] = field(default_factory=dict)
    epochs: int = 0
    loading_until: float = 0.0

    @property
    def taken(self) -> int:
        return sum(one.bytes for one in self.held.values())


@dataclass(slots=True, eq=False)
class Request:
    model: str
    arrived: float
    deadline: float
    runs_s: float
    started: float = math.nan
    failure: str = ""

    @property
    def waited_s(self) -> float:
        return self.started - self.arrived


@dataclass(slots=True)
class Tally:
    """What came of it all."""

    requests: list[Request] = field(default_factory=list)
    hits: int = 0  # found their model ready
    loads: list[tuple[float, str, str]] = field(default_factory=list)
    evictions: list[tuple[float, UnloadOrder]] = field(default_factory=list)
    settlements: list[tuple[float, Settlement]] = field(default_factory=list)
    refused: int = 0  # orders to unload what was in use
    bytes_loaded: int = 0
    mistakes: list[str] = field(default_factory=list)


class World:
    """One run. `draw` is the only source of chance."""

    def __init__(
        self,
        models: list[Model],
        budgets: list[int],
        *,
        policy: str,
        limits: Limits | None = None,
        seed: int = 0,
        load_fails: float = 0.0,
    ) -> None:
        self.now = 0.0
        self.tally = Tally()
        self.models = {model.name: model for model in models}
        self.workers = {f"w{n}": Worker(f"w{n}", budget) for n, budget in enumerate(budgets)}
        self._random = random.Random(seed)
        self._load_fails = load_fails
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._waiting: dict[str, list[Request]] = {}
        self.residency = Residency(self._random.random, limits, policy)
        self.residency.catalog(model.entry() for model in models)
        for worker in self.workers.values():
            self._tell(worker)
            self._sample(worker)
        self._tick()

    # -- time --------------------------------------------------------------------------------------

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), call))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, call = heapq.heappop(self._events)
            call()
        self.now = until

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    # -- requests ----------------------------------------------------------------------------------

    def request(self, model: str, runs_s: float, deadline_s: float = math.inf) -> None:
        request = Request(model, self.now, self.now + deadline_s, runs_s)
        self.tally.requests.append(request)
        if self._start(request):
            self.tally.hits += 1
            return
        self._waiting.setdefault(model, []).append(request)
        self._want(model)
        if deadline_s < math.inf:
            self.after(deadline_s, lambda: self._expire(request))

    def _want(self, model: str) -> None:
        waiting = self._waiting.get(model)
        if waiting:
            deadline = max(request.deadline for request in waiting)
            self.residency.want(model, 1, frozenset(), self.now, deadline)
            self._replan()

    def _start(self, request: Request) -> bool:
        ready = [
            held
            for worker in self.workers.values()
            if (held := worker.held.get(request.model)) and held.state is PlaceState.READY
        ]
        if not ready:
            return False
        held = min(ready, key=lambda one: one.running)
        held.running += 1
        held.arrivals += 1
        request.started = self.now
        self.after(request.runs_s, lambda: self._end(held))
        return True

    def _end(self, held: Held) -> None:
        held.running -= 1
        held.last_used = self.now

    def _expire(self, request: Request) -> None:
        waiting = self._waiting.get(request.model, [])
        if request in waiting:
            waiting.remove(request)
            request.failure = "deadline_exceeded"

    # -- the policy's side -------------------------------------------------------------------------

    def _tick(self) -> None:
        self._replan()
        self.after(TICK_S, self._tick)

    def _replan(self) -> None:
        plan = self.residency.plan(self.now)
        for unload in plan.unloads:
            self._check_eviction(unload)
            self.after(LATENCY_S, lambda order=unload: self._unload(order))  # type: ignore[misc]
        for load in plan.loads:
            self.after(LATENCY_S, lambda order=load: self._load(order))  # type: ignore[misc]
        for settlement in plan.settlements:
            self.tally.settlements.append((self.now, settlement))
            if settlement.reason:
                self._fail(settlement)

    def _fail(self, settlement: Settlement) -> None:
        """Those whose own deadline is yet to come ask again; nobody is there to wait for a failed load."""
        name = settlement.demand.model
        if settlement.reason == "deadline_exceeded":
            self.after(0.0, lambda: self._want(name))
            return
        for request in self._waiting.pop(name, []):
            request.failure = settlement.reason

    def _check_eviction(self, order: UnloadOrder) -> None:
        """At the order: by what the policy knows, and by the truth where the two cannot differ."""
        worker = self.workers[order.target]
        held = worker.held[order.model]
        if self.residency.pinned(order.model):
            self.tally.mistakes.append(f"{order.model} is pinned")
        stays_s = self.residency.limits.min_residency_s
        if held.state is PlaceState.READY and self.now - held.ready_at < stays_s:
            self.tally.mistakes.append(f"{order.model} is there for {self.now - held.ready_at:.2f} s only")
        if self.residency.hosts[order.target].uses[order.model].running:
            self.tally.mistakes.append(f"{order.model} is in use")

    # -- the workers' side -------------------------------------------------------------------------

    def _load(self, order: LoadOrder) -> None:
        worker, model = self.workers[order.target], self.models[order.model]
        if worker.loading_until > self.now:
            self.tally.mistakes.append(f"{order.model} is ordered while {order.target} is at another load")
        known = worker.held.get(model.name)
        taken = worker.taken - (known.bytes if known is not None else 0)
        if taken + model.memory_bytes > worker.budget:
            self.tally.mistakes.append(f"{order.model} does not fit {order.target}")
            self.residency.failed(order, "out_of_memory", "no room", self.now)
            return
        asleep = known is not None and known.state is PlaceState.ASLEEP
        worker.epochs += 1
        held = worker.held[model.name] = Held(model, worker.epochs, PlaceState.LOADING)
        takes_s = model.wake_s if asleep else model.load_s
        worker.loading_until = self.now + takes_s
        self._tell(worker)
        if not asleep:
            self.tally.bytes_loaded += model.memory_bytes
        fails = self._random.random() < self._load_fails
        self.after(takes_s, lambda: self._load_ends(order, worker, held, fails))

    def _load_ends(self, order: LoadOrder, worker: Worker, held: Held, fails: bool) -> None:
        if fails:
            del worker.held[held.model.name]
            self.residency.failed(order, "load_failed", "told to", self.now)
        else:
            held.state = PlaceState.READY
            held.ready_at = held.last_used = self.now
            self.tally.loads.append((self.now, held.model.name, worker.target))
            self.residency.loaded(order, held.epoch, self.now)
            for request in self._waiting.pop(held.model.name, []):
                self._start(request)
        self._tell(worker)
        self._replan()

    def _unload(self, order: UnloadOrder) -> None:
        worker = self.workers[order.target]
        held = worker.held.get(order.model)
        if held is None or held.epoch != order.epoch or self._in_use(held, order):
            self._refuse(order)
        elif held.state is PlaceState.ASLEEP:
            self._gone(order, worker)
        else:
            held.state = PlaceState.UNLOADING
            self._tell(worker)
            self.after(LINGER_S + UNLOAD_S, lambda: self._gone(order, worker))

    def _in_use(self, held: Held, order: UnloadOrder) -> bool:
        since = 0.0 if held.running else self.now - held.last_used
        return held.state is PlaceState.READY and (held.running > 0 or since < order.idle_s - 1e-9)

    def _refuse(self, order: UnloadOrder) -> None:
        self.tally.refused += 1
        self.residency.kept(order, self.now)
        self._replan()

    def _gone(self, order: UnloadOrder, worker: Worker) -> None:
        if order.sleep:
            worker.held[order.model].state = PlaceState.ASLEEP
        else:
            del worker.held[order.model]
        self.tally.evictions.append((self.now, order))
        self.residency.unloaded(order)
        self._tell(worker)
        self._replan()
        self._want(order.model)

    def _tell(self, worker: Worker) -> None:
        """What it holds, which arrives a moment later."""
        places = tuple(
            Place(
                held.model.name,
                held.state,
                held.epoch,
                held.model.memory_bytes,
                engine=ENGINE,
                sleep=SleepCosts(held.model.sleep_bytes, held.model.wake_s)
                if held.model.sleep_bytes >= 0
                else None,
            )
            for held in worker.held.values()
        )
        facts = HostFacts(
            worker.target,
            worker.target,
            engines=frozenset({ENGINE}),
            memory_budget_bytes=worker.budget,
            places=places,
        )
        self.after(LATENCY_S, lambda: self._described(worker.target, facts))

    def _described(self, target: str, facts: HostFacts) -> None:
        self.residency.describe(target, facts, self.now)
        self._replan()

    def _sample(self, worker: Worker) -> None:
        taken_at = self.now
        told = [
            (held.model.name, held.running, 0.0 if held.running else taken_at - held.last_used, held.arrivals)
            for held in worker.held.values()
            if held.state is PlaceState.READY
        ]
        self.after(LATENCY_S, lambda: self._sampled(worker.target, told))
        self.after(SAMPLE_S, lambda: self._sample(worker))

    def _sampled(self, target: str, told: list[tuple[str, int, float, int]]) -> None:
        for model, running, idle_s, arrivals in told:
            self.residency.used(target, model, running, idle_s, arrivals, self.now)
        self.residency.sampled(target, self.now)
