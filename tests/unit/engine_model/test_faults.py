"""Faults strike at their step, in virtual time, and leave behind what an engine's death leaves behind."""

import itertools
from collections.abc import Callable

import pytest

from tokenfleet.core.engine_model import (
    BatchingModel,
    Ending,
    EngineModel,
    Fault,
    FaultKind,
    FaultPlan,
    FixedModel,
    FixedTiming,
    ModelSequence,
    PrefixCache,
    StallDetector,
    StepTiming,
)

FOR_EVER = 1e9


def fixed(plan: FaultPlan) -> FixedModel:
    return FixedModel(FixedTiming(0.010, 0.010), 2, PrefixCache(1_000, 16), plan)


def batching(plan: FaultPlan) -> BatchingModel:
    timing = StepTiming(0.010, 0.0, 0.0, prefill_tokens_per_s=1e12)
    return BatchingModel(timing, 2, PrefixCache(1_000, 16), plan)


both = pytest.mark.parametrize("make", [fixed, batching])


def sequence(key: int, budget: int = 100) -> ModelSequence:
    counter = itertools.count(100 * key)
    return ModelSequence(key, 10, budget, lambda: next(counter))


@both
@pytest.mark.parametrize("kind", [FaultKind.CRASH, FaultKind.OUT_OF_MEMORY, FaultKind.WEDGE])
def test_after_its_step_nothing_happens_any_more(
    make: Callable[[FaultPlan], EngineModel], kind: FaultKind
) -> None:
    plan = FaultPlan([Fault(kind, at_step=4)])
    model = make(plan)
    model.submit(0.0, sequence(1))
    assert len(model.advance(FOR_EVER).tokens) == 3
    assert plan.struck is kind
    assert model.next_event_at() is None
    model.submit(0.0, sequence(2))
    assert model.next_event_at() is None
    assert not model.advance(FOR_EVER).tokens
    assert model.load().running == 2, "its work is still there"


@both
def test_a_death_ends_all_sequences_wherever_they_are(make: Callable[[FaultPlan], EngineModel]) -> None:
    model = make(FaultPlan([Fault(FaultKind.CRASH, at_step=3)]))
    model.submit(0.0, sequence(1))
    assert len(model.advance(FOR_EVER).tokens) == 2
    for key in (2, 3):  # one gets a place, one waits for it
        model.submit(0.0, sequence(key))
    ended = model.die()
    assert {one.key for one in ended} == {1, 2, 3}
    assert {one.ending for one in ended} == {Ending.FAILED}


@both
def test_a_slow_engine_is_slow_from_its_step_on(make: Callable[[FaultPlan], EngineModel]) -> None:
    faults = [
        Fault(FaultKind.SLOW_DOWN, at_step=2, factor=10.0),
        Fault(FaultKind.SLOW_DOWN, at_step=4, factor=1.0),
    ]
    model = make(FaultPlan(faults))
    model.submit(0.0, sequence(1, budget=6))
    times = []
    while (due := model.next_event_at()) is not None:
        assert len(model.advance(due).tokens) == 1
        times.append(due)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    slow = [gap for gap in gaps if gap > 0.05]
    assert len(gaps) == 5
    assert len(slow) == 2
    assert slow == pytest.approx([0.1, 0.1])


def test_steps_are_counted_over_restarts_and_each_fault_strikes_once() -> None:
    plan = FaultPlan([Fault(FaultKind.WEDGE, at_step=5), Fault(FaultKind.CRASH, at_step=2)])
    struck = []
    for _ in range(3):
        model = fixed(plan)
        model.submit(0.0, sequence(1, budget=10))
        struck.append((len(model.advance(FOR_EVER).tokens), plan.struck))
        plan.restarted()
    assert struck == [(1, FaultKind.CRASH), (2, FaultKind.WEDGE), (10, None)]


def test_of_two_faults_at_one_step_the_second_strikes_after_the_restart() -> None:
    plan = FaultPlan([Fault(FaultKind.CRASH, at_step=1), Fault(FaultKind.OUT_OF_MEMORY, at_step=1)])
    struck = []
    for _ in range(2):
        assert not plan.next_step()
        struck.append(plan.struck)
        plan.restarted()
    assert struck == [FaultKind.CRASH, FaultKind.OUT_OF_MEMORY]


def watch(
    detector: StallDetector, *, steps: Callable[[int], int], slowest_s: float, busy: bool = True
) -> int:
    """Asks every 100 ms; answers after how many questions it is called wedged, 0 if never."""
    for asked in range(1, 1_000):
        if detector.wedged(asked * 0.1, busy=busy, steps=steps(asked), slowest_s=slowest_s):
            return asked
    return 0


def detector() -> StallDetector:
    return StallDetector(steps_missed=20, least_s=1.0, interval_s=0.1)


@pytest.mark.parametrize(("slowest_s", "after_s"), [(0.0, 1.0), (0.01, 1.0), (0.2, 4.0)])
def test_an_engine_with_work_and_no_step_is_wedged_by_its_own_measure(
    slowest_s: float, after_s: float
) -> None:
    asked = watch(detector(), steps=lambda asked: 7, slowest_s=slowest_s)
    assert asked * 0.1 == pytest.approx(after_s + 0.1, abs=0.11)


def test_progress_and_idleness_are_no_stall() -> None:
    assert not watch(detector(), steps=lambda asked: asked // 9, slowest_s=0.01)
    assert not watch(detector(), steps=lambda asked: 7, slowest_s=0.01, busy=False)


def test_what_was_not_looked_at_does_not_count() -> None:
    one = detector()
    assert not one.wedged(0.0, busy=True, steps=1, slowest_s=0.01)
    assert not one.wedged(60.0, busy=True, steps=1, slowest_s=0.01), "the whole process may have stood still"


def test_work_that_comes_to_an_idle_engine_has_its_whole_time() -> None:
    one = detector()
    for asked in range(100):
        assert not one.wedged(asked * 0.1, busy=asked % 5 != 0, steps=1, slowest_s=0.01)
