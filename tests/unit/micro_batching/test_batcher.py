"""When a batch goes and who is in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.core.micro_batching import MicroBatcher, QueueFull
from tokenfleet.core.micro_batching.batcher import FREE_PADDING


def batcher(max_batch: int = 4, capacity: int = 100_000, **settings: float) -> MicroBatcher:
    settings = {"window_s": 0.030, "max_padding": 0.5, **settings}
    return MicroBatcher(max_batch=max_batch, capacity_tokens=capacity, **settings)  # type: ignore[arg-type]


def filled(lengths: list[int], **settings: float) -> MicroBatcher:
    """Requests 0, 1, … of these lengths, all at time 0."""
    one = batcher(**settings)  # type: ignore[arg-type]
    for key, length in enumerate(lengths):
        one.add(0.0, key, length, 10)
    return one


def test_a_request_alone_goes_when_the_window_ends_and_not_before() -> None:
    one = batcher()
    one.add(1.0, 7, 10, 10)
    assert one.due_at() == pytest.approx(1.030)
    assert one.take(1.029) == []
    assert one.take(1.030) == [7]
    assert one.due_at() is None


def test_who_comes_within_the_window_goes_along_and_does_not_prolong_it() -> None:
    one = batcher()
    one.add(1.0, 1, 10, 10)
    one.add(1.029, 2, 10, 10)
    assert one.due_at() == pytest.approx(1.030)
    assert sorted(one.take(1.030)) == [1, 2]


def test_a_full_batch_waits_for_nothing() -> None:
    one = batcher()
    for key in range(4):
        one.add(1.0 + key / 1000, key, 10, 10)
    assert one.due_at() == pytest.approx(1.003)
    assert sorted(one.take(1.003)) == [0, 1, 2, 3]


def test_time_waited_while_the_engine_was_busy_counts() -> None:
    one = batcher()
    one.add(1.0, 1, 10, 10)
    assert one.take(9.0) == [1]


def test_company_is_whoever_needs_the_least_padding() -> None:
    one = filled([1_000, 100, 1_020, 110, 980, 4_000, 990, 5_000, 900])
    assert one.take(0.0) == [4, 6, 0, 2]  # lengths 980, 990, 1000, 1020
    assert one.take(0.0) == [1, 3]  # beside 900, nine tenths of the others would be padding
    assert one.take(0.030) == [5, 7]
    assert one.take(0.030) == [8]


def test_more_company_counts_more_than_less_padding() -> None:
    one = filled([1_000, 600, 1_000], max_batch=3)
    assert one.take(0.0) == [1, 0, 2]


def test_a_little_padding_is_no_reason_to_leave_anybody_out() -> None:
    one = filled([64, 1, 65], max_batch=3)
    assert one.take(0.0) == [1, 0, 2]


def test_the_oldest_is_in_the_next_batch_whatever_its_length() -> None:
    one = filled([5_000, *[10] * 12])
    assert one.take(0.0) == [0]


def test_those_beyond_the_look_ahead_overtake_nobody() -> None:
    one = filled([1_000, *[600] * 7, 1_000], max_batch=2)
    assert 8 not in one.take(0.0)


def test_a_batch_fits_into_the_cache_with_its_padding_and_its_answers() -> None:
    one = batcher(max_batch=4, capacity=400)
    for key, (length, budget) in enumerate([(100, 20), (90, 50), (80, 20), (100, 20)]):
        one.add(0.0, key, length, budget)
    assert one.take(0.0) == [0, 3]  # with the second, three times 150 tokens
    assert one.take(0.03) == [2, 1]


def test_what_could_never_run_is_refused() -> None:
    one = batcher(capacity=100)
    with pytest.raises(ValueError, match="cache of 100 tokens"):
        one.add(0.0, 1, 91, 10)
    with pytest.raises(ValueError, match="budget of 0"):
        one.add(0.0, 1, 5, 0)
    assert len(one) == 0


def test_the_queue_is_bounded() -> None:
    one = batcher(queue_limit=2)
    one.add(0.0, 1, 1, 1)
    one.add(0.0, 2, 1, 1)
    with pytest.raises(QueueFull, match="2 requests"):
        one.add(0.0, 3, 1, 1)
    assert one.remove(1)
    one.add(0.0, 3, 1, 1)


def test_who_is_removed_is_in_no_batch_and_moves_the_window() -> None:
    one = batcher()
    one.add(1.0, 1, 10, 10)
    one.add(1.010, 2, 10, 10)
    assert one.remove(1)
    assert not one.remove(1)
    assert one.due_at() == pytest.approx(1.040)
    assert one.tokens == 10
    assert one.take(1.040) == [2]
    assert one.tokens == 0


@pytest.mark.parametrize("wrong", [{"window_s": -1}, {"max_batch": 0}, {"capacity": 0}, {"max_padding": 1.5}])
def test_settings_that_make_no_batches_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="make no batches"):
        batcher(**wrong)  # type: ignore[arg-type]


REQUESTS = st.lists(
    st.tuples(st.floats(0, 0.05), st.integers(1, 300), st.integers(1, 100)), min_size=1, max_size=60
)


@given(REQUESTS, st.integers(1, 8), st.floats(0, 0.1), st.floats(0, 1), st.floats(0, 0.2))
def test_all_are_served_in_bounded_time_and_no_batch_is_too_large(
    requests: list[tuple[float, int, int]],
    max_batch: int,
    window_s: float,
    max_padding: float,
    batch_s: float,
) -> None:
    """An engine that takes a batch whenever it is idle; `batch_s` is how long one lasts."""
    one = MicroBatcher(window_s=window_s, max_batch=max_batch, capacity_tokens=500, max_padding=max_padding)
    now, coming = 0.0, []
    for key, (pause, tokens, budget) in enumerate(requests):
        now += pause
        coming.append((now, key, tokens, budget))
    arrived = {key: at for at, key, *_ in coming}
    now = idle_since = 0.0
    served: dict[int, int] = {}
    batches: list[tuple[float, float]] = []
    while coming or len(one):
        due = one.due_at()
        if due is None or (coming and coming[0][0] <= max(now, due)):
            at, key, tokens, budget = coming.pop(0)
            one.add(at, key, tokens, budget)
            now = max(now, at)
            continue
        now = max(now, due)
        oldest = next(iter(one))
        batch = one.take(now)
        assert oldest in batch
        assert len(batch) <= max_batch
        rows = [requests[key] for key in batch]
        longest = max(tokens for _, tokens, _ in rows)
        assert len(rows) * (longest + max(budget for *_, budget in rows)) <= 500
        padding = longest - min(tokens for _, tokens, _ in rows)
        assert padding <= max(FREE_PADDING, max_padding * longest)
        served |= dict.fromkeys(batch, len(batches))
        batches.append((now, idle_since))
        now = idle_since = now + batch_s
    assert sorted(served) == sorted(arrived)
    for key, number in served.items():
        began, engine_idle_since = batches[number]
        assert began - max(arrived[key], engine_idle_since) <= window_s + 1e-9
        waited_through = [at for at, _ in batches[:number] if at >= arrived[key]]
        assert len(waited_through) <= key  # no more than there were requests before it
