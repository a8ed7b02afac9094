"""What a model costs where it is not, and when that is less than to wait where it is."""

import pytest

from tests.unit.scheduling.world import MODEL, World
from tokenfleet.core.scheduling import LoadWish, Placed, ReplicaState, Step
from tokenfleet.core.scheduling.cold import UNSEEN_LOAD_S, LoadTimes

FAST = Step(0.01, 8, 0, 8000)
COPY = LoadWish(MODEL, replicas=2)


def loaded(world: World, target: str, seconds: float, slots: int = 64) -> None:
    """The model comes to be on a worker that was up without it."""
    world.up(target, state=None)
    world.up(target, state=ReplicaState.LOADING)
    world.pass_time(seconds)
    world.up(target, slots=slots)
    world.sample(target, steps=[FAST] * 4)


def world_of(load_s: float, slots: int = 64) -> World:
    """`a` serves the model, which took so long to load; `b` does not, and could."""
    world = World("predicted")
    loaded(world, "a", load_s, slots)
    world.up("b", state=None)
    world.pass_time(4.0, living="ab")
    return world


def test_load_times_are_what_was_last_seen_of_the_model_or_else_of_others() -> None:
    times = LoadTimes()
    assert times.expect("a") == UNSEEN_LOAD_S
    times.learn("a", 8.0)
    times.learn("b", 2.0)
    assert times.expect("c") == 5.0
    times.learn("a", 6.0)
    assert times.expect("a") == 6.0


def test_a_load_is_timed_from_its_beginning_to_the_word_that_it_is_done() -> None:
    world = World()
    world.up("late", state=ReplicaState.LOADING)
    world.pass_time(1.0)
    world.up("late")
    assert world.scheduler.fleet.load_times.expect(MODEL) == UNSEEN_LOAD_S, "its beginning was not seen"
    loaded(world, "a", 7.0)
    assert world.scheduler.fleet.load_times.expect(MODEL) == pytest.approx(7.0)
    world.up("a")
    assert world.scheduler.fleet.load_times.expect(MODEL) == pytest.approx(7.0)


@pytest.mark.parametrize(("queued", "wished"), [(20_000, False), (100_000, True)])
def test_a_copy_is_wished_for_once_its_load_is_cheaper_than_to_wait(queued: int, wished: bool) -> None:
    world = world_of(5.0)
    world.sample("a", running=4, queued_prefill_tokens=queued)
    placed = world.place(prompt_tokens=64)
    assert placed.forecast is not None
    assert (placed.forecast.ttft_s > 5.0) is wished, placed.forecast
    assert world.wishes == [COPY] * wished
    assert ("a further copy is asked for, which takes 5.0 s to load" in placed.why) is wished
    world.place(prompt_tokens=64)
    assert len(world.wishes) == wished, "one load, however many would have it"


def test_no_copy_is_wished_for_where_none_could_be() -> None:
    world = world_of(5.0)
    world.lost("b")
    world.sample("a", running=4, queued_prefill_tokens=100_000)
    assert "copy" not in world.place(prompt_tokens=64).why
    assert not world.wishes


def test_those_who_waited_for_a_load_make_no_copy_dearer_than_it_is() -> None:
    world = World("predicted")
    world.up("b", state=None)
    loaded(world, "a", 5.0)
    world.sample("a", running=4, queued_prefill_tokens=100_000)
    world.place(prompt_tokens=64)
    assert not world.wishes


@pytest.mark.parametrize(("load_s", "after_s"), [(1.0, 1.25), (600.0, 3.0)])
def test_a_queue_longer_than_a_load_makes_a_model_hot_sooner(load_s: float, after_s: float) -> None:
    world = world_of(load_s, slots=3)
    world.sample("a", running=3)
    began = world.now
    for _ in range(20):
        world.ask(prompt_tokens=64)
    while not world.wishes and world.now < began + 10:
        world.pass_time(0.05, living="ab", running=3)
    assert world.wishes == [COPY]
    assert world.now - began == pytest.approx(after_s, abs=0.3)


def test_candidates_that_would_have_to_load_are_told_with_what_that_costs() -> None:
    world = world_of(5.0)
    world.up("c", state=None, engine="other")
    decision = world.last(world.ask(prompt_tokens=1000, max_tokens=10))
    assert isinstance(decision, Placed)
    seen = {one.worker_id: one for one in decision.scene.candidates((), frozenset())}
    assert seen["a.1"].cold is None
    assert seen["c.1"].cold is None, "its engines do not serve the model"
    cold = seen["b.1"].cold
    assert cold is not None
    assert cold.load_s == pytest.approx(5.0)
    assert cold.ttft_s > cold.load_s + cold.prompt_s > cold.load_s
    assert cold.cost_s == pytest.approx(sum(cold.parts_s().values()))
    assert seen["b.1"].veto == "the model is not resident"


def test_a_refusal_tells_what_it_would_have_taken_to_load() -> None:
    world = World("predicted")
    world.up("b", state=None)
    request = world.ask(deadline_s=2.0)
    world.pass_time(2.1, living="b")
    assert world.refused(request) == "no_worker"
    decision = world.last(request)
    assert not isinstance(decision, Placed)
    (candidate,) = decision.scene.candidates((), frozenset())  # type: ignore[union-attr]
    assert candidate.cold is not None
    assert candidate.cold.load_s == UNSEEN_LOAD_S
