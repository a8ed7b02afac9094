"""Static batching in virtual time: what waits for what, and what padding costs."""

import itertools

import pytest

from tests.unit.engine_model.test_engine_model import cache, run, token_times
from tokenfleet.core.engine_model import (
    Ending,
    Fault,
    FaultKind,
    FaultPlan,
    ModelSequence,
    StaticModel,
    StepTiming,
)
from tokenfleet.core.micro_batching import MicroBatcher

TIMING = StepTiming(0.010, 0.001, 0.0, 1_000.0, prefill_chunk_tokens=1_000)


def static(max_batch: int = 4, *, compact: bool = True, faults: FaultPlan | None = None) -> StaticModel:
    batcher = MicroBatcher(window_s=0.030, max_batch=max_batch, capacity_tokens=16_000)
    return StaticModel(TIMING, batcher, cache(), faults, compact=compact)


def sequence(key: int, budget: int = 3, context: int = 10) -> ModelSequence:
    counter = itertools.count(100 * key)
    return ModelSequence(key, context, budget, lambda: next(counter))


def test_a_batch_begins_when_the_window_ends_and_keeps_everybody_else_out() -> None:
    model = static()
    model.submit(0.000, sequence(1, budget=2, context=100))
    model.submit(0.020, sequence(2, budget=4, context=50))
    model.advance(0.030)
    assert model.load() == (2, 0, 11, 150, 0)
    model.submit(0.040, sequence(3))
    assert model.load().waiting == 1
    times = token_times(run(model))
    # two rows of 100 tokens, then steps of two sequences, and of one
    assert times[1] == [0.24, 0.252]
    assert times[2] == [0.24, 0.252, 0.263, 0.274]
    assert times[3][0] == pytest.approx(0.274 + 0.020)  # no window: it waited long enough
    assert model.load() == (0, 0, 0, 0, 0)


def test_a_full_batch_begins_at_once() -> None:
    model = static(2)
    model.submit(0.0, sequence(1))
    assert model.load().running == 0
    model.submit(0.0, sequence(2))
    assert model.load().running == 2


def test_rows_that_have_ended_cost_on_where_nothing_is_compacted() -> None:
    durations = {}
    for compact in (True, False):
        model = static(2, compact=compact)
        model.submit(0.0, sequence(1, budget=1))
        model.submit(0.0, sequence(2, budget=4))
        steps = [step for _, advance in run(model) for step in advance.steps]
        durations[compact] = [round(step.duration_s, 6) for step in steps]
        assert [step.batch for step in steps] == [2, 1, 1, 1]
        assert (model.computed, model.useful) == (20 + (3 if compact else 6), 20 + 3)
    assert durations == {True: [0.03, 0.011, 0.011, 0.011], False: [0.03, 0.012, 0.012, 0.012]}


def test_padding_is_computed_and_counted() -> None:
    model = static(2)
    model.submit(0.0, sequence(1, budget=1, context=60))
    model.submit(0.0, sequence(2, budget=1, context=100))
    (step,) = [step for _, advance in run(model) for step in advance.steps]
    assert step.prefill_tokens == 200
    assert (model.computed, model.useful) == (200, 160)


def test_a_large_rectangle_is_computed_in_chunks() -> None:
    model = static(2)
    for key in (1, 2):
        model.submit(0.0, sequence(key, budget=1, context=1_200))
    steps = [step for _, advance in run(model) for step in advance.steps]
    assert [step.prefill_tokens for step in steps] == [1_000, 1_000, 400]


def test_when_all_of_a_batch_are_aborted_the_next_one_begins() -> None:
    model = static(2)
    for key in (1, 2, 3):
        model.submit(0.0, sequence(key, budget=100))
    model.advance(0.05)
    assert model.abort(0.05, 1)
    assert model.abort(0.05, 2)
    times = token_times(run(model))
    assert set(times) == {3}
    assert len(times[3]) == 100


def test_who_is_aborted_while_waiting_is_never_computed() -> None:
    model = static()
    model.submit(0.0, sequence(1))
    ended = model.abort(0.010, 1)
    assert ended is not None
    assert ended.ending is Ending.ABORTED
    assert model.next_event_at() is None
    assert run(model) == []


def test_a_fault_strikes_at_its_step_and_not_at_the_end_of_a_window() -> None:
    model = static(faults=FaultPlan([Fault(FaultKind.CRASH, 2)]))
    model.submit(0.0, sequence(1))
    assert [now for now, advance in run(model) if advance.tokens] == [pytest.approx(0.050)]
    assert model.next_event_at() is None


def test_a_sequence_without_a_budget_or_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="budget"):
        static().submit(0.0, sequence(1, budget=0))
    with pytest.raises(ValueError, match="does not fit"):
        static().submit(0.0, sequence(1, context=20_000))
