"""The schedules in virtual time: when tokens come, who waits, what an abort frees."""

import itertools
from collections import defaultdict
from collections.abc import Callable

import pytest

from tokenfleet.core.engine_model import (
    Advance,
    BatchingModel,
    Ending,
    EngineModel,
    FixedModel,
    FixedTiming,
    ModelSequence,
    PrefixCache,
    StaticModel,
    StepTiming,
)
from tokenfleet.core.micro_batching import MicroBatcher


def cache(blocks: int = 1_000) -> PrefixCache:
    return PrefixCache(blocks, 16)


def fixed(max_sequences: int = 8, ttft_s: float = 0.005, itl_s: float = 0.010) -> FixedModel:
    return FixedModel(FixedTiming(ttft_s, itl_s), max_sequences, cache())


def batching(max_sequences: int) -> BatchingModel:
    return BatchingModel(StepTiming(), max_sequences, cache())


def static(max_sequences: int) -> StaticModel:
    return StaticModel(
        StepTiming(), MicroBatcher(window_s=0.03, max_batch=max_sequences, capacity_tokens=16_000), cache()
    )


def sequence(key: int, budget: int = 3, context: int = 10, hashes: tuple[int, ...] = ()) -> ModelSequence:
    counter = itertools.count(100 * key)
    return ModelSequence(key, context, budget, lambda: next(counter), hashes)


def run(model: EngineModel) -> list[tuple[float, Advance]]:
    """Drives the model on its own events until it is idle."""
    happened = []
    while (due := model.next_event_at()) is not None:
        happened.append((due, model.advance(due)))
    return happened


def token_times(happened: list[tuple[float, Advance]]) -> dict[int, list[float]]:
    times = defaultdict(list)
    for now, advance in happened:
        for key, _ in advance.tokens:
            times[key].append(round(now, 6))
    return times


def test_the_fixed_profile_gives_the_first_token_after_its_ttft_and_ticks_all_sequences_together() -> None:
    model = fixed()
    model.submit(1.000, sequence(1, budget=4))
    model.submit(1.003, sequence(2, budget=4))
    times = token_times(run(model))
    assert times[1] == [1.005, 1.010, 1.020, 1.030]
    assert times[2] == [1.008, 1.010, 1.020, 1.030]


def test_a_late_caller_gets_all_that_was_due_in_order() -> None:
    model = fixed()
    model.submit(0.0, sequence(1, budget=5))
    advance = model.advance(0.036)
    assert advance.tokens == [(1, (100,)), (1, (101,)), (1, (102,)), (1, (103,))]
    assert not advance.ended
    assert model.advance(0.041).ended[0].ending is Ending.LENGTH
    assert model.next_event_at() is None


def test_the_source_ends_a_sequence_without_a_token() -> None:
    model = fixed()
    drawn = iter([7, None])
    model.submit(0.0, ModelSequence(1, 10, 99, lambda: next(drawn)))
    advance = model.advance(1.0)
    assert advance.tokens == [(1, (7,))]
    assert [(one.key, one.ending) for one in advance.ended] == [(1, Ending.STOP)]
    assert model.load().running == 0


@pytest.mark.parametrize("make", [fixed, batching, static])
def test_who_finds_no_place_waits_and_starts_when_one_ends(
    make: Callable[[int], EngineModel],
) -> None:
    model = make(2)
    for key in (1, 2, 3):
        model.submit(0.0, sequence(key))
    assert model.load().waiting == 1
    happened = run(model)
    times = token_times(happened)
    ended = {one.key: one for _, advance in happened for one in advance.ended}
    assert len(times[3]) == 3
    assert times[3][0] > times[1][-1]
    assert ended[3].queue_s > 0
    assert ended[1].queue_s == 0
    assert model.load() == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("make", [fixed, batching, static])
def test_an_abort_frees_everything_and_says_nothing_more(
    make: Callable[[int], EngineModel],
) -> None:
    model = make(8)
    model.submit(0.0, sequence(1, budget=1_000))
    model.submit(0.0, sequence(2, budget=3))
    due = model.next_event_at()
    assert due is not None
    model.advance(due)
    assert model.load().kv_blocks_used > 0
    assert model.abort(due, 1)
    assert not model.abort(due, 1)
    assert {key for _, advance in run(model) for key, _ in advance.tokens} == {2}
    assert model.load() == (0, 0, 0, 0, 0)


def test_an_aborted_first_token_does_not_reach_a_later_sequence_of_the_same_key() -> None:
    model = fixed()
    model.submit(0.0, sequence(1))
    model.abort(0.001, 1)
    model.submit(0.002, sequence(1, budget=1))
    assert [round(now, 6) for now, advance in run(model) if advance.tokens] == [0.007]


def test_a_step_lasts_what_its_batch_its_context_and_its_prefill_cost() -> None:
    timing = StepTiming(0.010, 0.001, 0.000_01, 1_000.0, prefill_chunk_tokens=100)
    model = BatchingModel(timing, 8, cache())
    model.submit(0.0, sequence(1, budget=3, context=150))
    records = [record for _, advance in run(model) for record in advance.steps]
    assert [record.prefill_tokens for record in records] == [100, 50, 0, 0]
    assert [record.batch for record in records] == [0, 1, 1, 1]
    assert [round(record.duration_s, 6) for record in records] == [0.110, 0.060, 0.01251, 0.01252]


def test_a_long_prompt_is_prefilled_beside_running_sequences() -> None:
    model = BatchingModel(StepTiming(prefill_chunk_tokens=50), 8, cache())
    model.submit(0.0, sequence(1, budget=50))
    model.advance(0.02)
    model.submit(0.02, sequence(2, budget=1, context=500))
    times = token_times(run(model))
    during = [when for when in times[1] if 0.03 < when < times[2][0]]
    assert len(during) >= 8


def test_a_known_prefix_is_not_computed_again() -> None:
    model = fixed()
    hashes = tuple(range(4))
    model.submit(0.0, sequence(1, context=70, hashes=hashes))
    first = [one for _, advance in run(model) for one in advance.ended]
    model.submit(1.0, sequence(2, context=70, hashes=hashes))
    assert model.load().queued_prefill_tokens == 70 - 64
    second = [one for _, advance in run(model) for one in advance.ended]
    assert (first[0].cached_tokens, second[0].cached_tokens) == (0, 64)


def test_a_full_cache_makes_sequences_wait_instead_of_failing() -> None:
    model = FixedModel(FixedTiming(), 8, cache(blocks=4))
    for key in (1, 2, 3):
        model.submit(0.0, sequence(key, context=30, budget=2))  # two blocks each
    assert (model.load().running, model.load().waiting) == (2, 1)
    assert len(token_times(run(model))[3]) == 2


def test_a_sequence_without_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="budget"):
        fixed().submit(0.0, sequence(1, budget=0))
