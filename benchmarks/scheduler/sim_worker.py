"""A worker under a virtual clock: an engine model, and the samples that a real worker would send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenfleet.core.engine_model import BatchingModel, ModelSequence, PrefixCache, StepRecord, StepTiming
from tokenfleet.core.scheduling import (
    ModelLoad,
    Phase,
    ReplicaFacts,
    ReplicaState,
    Reservation,
    Step,
    WorkerFacts,
)
from tokenfleet.core.scheduling.sampling import LONGEST_SILENCE_S, STEPS_LEARNED

if TYPE_CHECKING:
    from benchmarks.scheduler.world import Asked, World

MODEL = "m"
ENGINE = "sim"
BLOCK_SIZE = 16
SAMPLE_DELAY_S = 0.002
CACHE_EVENTS = "cache_events"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a worker runs on. `slowness`: how many times as long everything takes."""

    name: str
    zone: str = ""
    slowness: float = 1.0
    timing: StepTiming = field(default_factory=StepTiming)
    max_sequences: int = 64
    kv_blocks: int = 8192
    block_size: int = BLOCK_SIZE
    tells_cache: bool = False


class SimWorker:
    def __init__(self, world: World, machine: Machine, interval_s: float) -> None:
        self.name = machine.name
        self.machine = machine
        self.alive = True
        self._world = world
        self._interval_s = interval_s
        self._cache_log = _CacheLog()
        timing, slowness = machine.timing, machine.slowness
        self.engine = BatchingModel(
            StepTiming(
                timing.base_s * slowness,
                timing.per_sequence_s * slowness,
                timing.per_context_token_s * slowness,
                timing.prefill_tokens_per_s / slowness,
                timing.prefill_chunk_tokens,
            ),
            machine.max_sequences,
            PrefixCache(
                machine.kv_blocks, machine.block_size, self._cache_log if machine.tells_cache else None
            ),
        )
        self._running: dict[int, tuple[Asked, Reservation, ModelSequence]] = {}
        self._last_key = 0
        self._stepping = False
        self._admitted: list[str] = []
        self._steps: list[StepRecord] = []
        self._published_at = 0.0
        self._publications = 0
        self._publishing = False

    def facts(self) -> WorkerFacts:
        machine = self.machine
        replica = ReplicaFacts(
            MODEL,
            ReplicaState.READY,
            epoch=1,
            max_sequences=machine.max_sequences,
            features=frozenset({CACHE_EVENTS} if machine.tells_cache else ()),
            block_size=machine.block_size,
            kv_blocks_total=machine.kv_blocks,
        )
        return WorkerFacts(
            f"{self.name}.1", self.name, machine.zone, Phase.READY, frozenset({ENGINE}), (replica,)
        )

    def teach_speed(self) -> None:
        """Lets the scheduler know how fast this is, as if it had watched for long: all kinds of steps."""
        slow, timing = self.machine.slowness, self.machine.timing
        steps = [
            Step(slow * timing.step_s(batch, batch * context, prefill), batch, prefill, batch * context)
            for batch in (1, 8, 24, 48)
            for context in (100, 600, 2000)
            for prefill in (0, 0, 0, 256, 1024, 2048)
        ] * 4
        self._world.scheduler.sample(self.name, (ModelLoad(MODEL, 0, 0, steps=steps),), (), 0.0, 0.0)

    # -- sequences ---------------------------------------------------------------------------------

    def submit(self, request: Asked, reservation: Reservation) -> None:
        if not self.alive:
            self._world.refused_by(request, reservation)
            return
        served = request.served
        assert served is not None
        self._last_key += 1
        sequence = ModelSequence(
            self._last_key,
            request.prompt_tokens,
            served.arrival.answer_tokens - served.generated,
            _any_token,
            request.block_hashes,
        )
        self._running[sequence.key] = request, reservation, sequence
        self._admitted.append(reservation.id)
        self.engine.submit(self._world.now, sequence)
        self._step_later()
        self._touched()

    def die(self) -> list[tuple[Asked, Reservation, int]]:
        """Answers whose streams broke, and how many tokens these had got from here."""
        self.alive = False
        return [
            (request, reservation, _generated(request, sequence))
            for request, reservation, sequence in self._running.values()
        ]

    def _step_later(self) -> None:
        due = self.engine.next_event_at()
        if due is not None and not self._stepping:
            self._stepping = True
            self._world.at(due, self._step)

    def _step(self) -> None:
        self._stepping = False
        if not self.alive:
            return
        now = self._world.now
        past = self.engine.advance(now)
        for key, _ in past.tokens:
            request, _, sequence = self._running[key]
            served = request.served
            if served is not None and served.first_at < 0.0:
                served.first_at = sequence.first_token_at
        self._steps += past.steps
        for ended in past.ended:
            request, reservation, sequence = self._running.pop(ended.key)
            assert request.served is not None
            request.served.computed_tokens += request.prompt_tokens - ended.cached_tokens
            self._world.ended(request, reservation, ended.ending, _generated(request, sequence))
        self._step_later()
        self._touched()

    # -- samples -----------------------------------------------------------------------------------

    def _touched(self) -> None:
        if not self._publishing:
            self._publishing = True
            self._world.at(max(self._world.now, self._published_at + self._interval_s), self.publish)

    def publish(self) -> None:
        """Sends a sample; another follows when something changes, or when nothing does for too long."""
        if not self.alive:
            return
        world, load = self._world, self.engine.load()
        self._publishing = False
        self._published_at = world.now
        self._publications += 1
        told = ModelLoad(
            MODEL,
            load.running,
            load.waiting,
            load.queued_prefill_tokens,
            load.context_tokens,
            load.kv_blocks_used,
            [Step(*record) for record in self._steps[-STEPS_LEARNED:]],
        )
        admitted, self._admitted = self._admitted, []
        self._steps.clear()
        events, self._cache_log.events = self._cache_log.events, []
        world.after(SAMPLE_DELAY_S, lambda: self._heard(told, admitted, events))
        publication = self._publications
        world.after(LONGEST_SILENCE_S, lambda: self._silent_since(publication))

    def _silent_since(self, publication: int) -> None:
        if publication == self._publications:
            self.publish()

    def _heard(
        self,
        load: ModelLoad,
        admitted: Sequence[str],
        events: Sequence[tuple[Sequence[int], Sequence[int]]],
    ) -> None:
        if not self.alive:
            return
        scheduler = self._world.scheduler
        scheduler.sample(self.name, (load,), admitted, SAMPLE_DELAY_S, self._world.now)
        for stored, removed in events:
            scheduler.cache_changed(self.name, MODEL, stored, removed)


@dataclass(slots=True)
class _CacheLog:
    """What came and went since the last sample, in order: stored, removed."""

    events: list[tuple[Sequence[int], Sequence[int]]] = field(default_factory=list)

    def cache_stored(self, hashes: Sequence[int], parent: int) -> None:
        del parent
        self.events.append((hashes, ()))

    def cache_removed(self, hashes: Sequence[int]) -> None:
        self.events.append(((), hashes))


def _any_token() -> int:
    return 1


def _generated(request: Asked, sequence: ModelSequence) -> int:
    return sequence.context_tokens - request.prompt_tokens
