"""A choice made one by one and a choice made in vectors are the same choice, for the same reasons."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.scheduling.test_objectives import prompt
from tests.unit.scheduling.test_predicted import FAST, SLOTS, policy, target, world_of
from tests.unit.scheduling.world import MODEL, World, fingerprint
from tokenfleet.core.scheduling import Choice, Device, Placed, Step
from tokenfleet.core.scheduling.few import choose_among_few
from tokenfleet.core.scheduling.many import FORECASTS_KEPT, choose_among_many
from tokenfleet.core.scheduling.predicted import FEW

WORKERS = 6

worker_states = st.fixed_dictionaries(
    {
        "running": st.integers(0, 10),
        "queued_prefill_tokens": st.sampled_from([0, 0, 40, 3_000, 60_000]),
        "context_tokens": st.integers(0, 8_000),
        "kv_blocks_used": st.integers(0, 400),
        "pace": st.sampled_from([0.5, 1.0, 1.0, 3.0]),
        "device": st.sampled_from([Device(), Device(throttled=True)]),
        "zone": st.sampled_from(["a", "b", ""]),
        "engine": st.sampled_from(["sim", "other"]),
        "features": st.sets(st.sampled_from(["cache_events", "logprobs"])),
        "cached_blocks": st.sampled_from([0, 0, 10, 40]),
        "reserved": st.integers(0, 2),
    }
)
requests = st.fixed_dictionaries(
    {
        "zone": st.sampled_from(["a", "b", ""]),
        "max_tokens": st.sampled_from([0, 1, 16, 700]),
        "ttft_objective_s": st.sampled_from([math.inf, 10.0, 0.5, 0.05]),
        "itl_objective_s": st.sampled_from([math.inf, 1.0, 0.03, 0.005]),
        "excluded": st.sets(st.sampled_from(["w0.1", "w1.1"])).map(frozenset),
        "features": st.sampled_from([frozenset(), frozenset({"logprobs"})]),
        "preferred": st.sampled_from([None, fingerprint("other")]),
    }
)


@given(
    states=st.lists(worker_states, min_size=1, max_size=WORKERS),
    wanted=requests,
    tokens=st.integers(1, 1000),
    drawn=st.floats(0.0, 1.0, exclude_max=True),
    busy=st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=150, deadline=None)
def test_both_ways_agree(
    states: list[dict[str, Any]], wanted: dict[str, Any], tokens: int, drawn: float, busy: float
) -> None:
    world = World("predicted", engine_queue_ratio=0.5)
    for number, state in enumerate(states):
        _up(world, f"w{number}", dict(state), prompt(1, tokens)["block_hashes"])
    scheduler, told = world.scheduler, policy(world)
    told._crowding[MODEL]._busy = busy
    choices: list[Choice | None] = []
    for choose in (choose_among_few, choose_among_many):

        def chosen(*given: Any, choose: Any = choose) -> Choice | None:
            choices.append(choose(*given))
            return None

        with pytest.MonkeyPatch.context() as patched:
            for name in ("choose_among_few", "choose_among_many"):
                patched.setattr(f"tokenfleet.core.scheduling.predicted.{name}", chosen)
            patched.setattr(scheduler, "_draw", lambda: drawn)
            scheduler.cancel(world.ask(**prompt(1, tokens), **wanted))
    few, many = choices
    assert (few is None) == (many is None)
    if few is None or many is None:
        return
    assert (few.replica, few.why, few.busy) == (many.replica, many.why, many.busy)
    assert _told(few) == pytest.approx(_told(many))


def _up(world: World, name: str, state: dict[str, Any], blocks: list[int]) -> None:
    world.up(
        name,
        slots=9,
        zone=state.pop("zone"),
        kv_blocks=400,
        engine=state.pop("engine"),
        features=state.pop("features"),
    )
    held, reserved, pace = blocks[: state.pop("cached_blocks")], state.pop("reserved"), state.pop("pace")
    steps = [Step(pace * seconds, 8, prefill, 8000) for seconds, prefill in ((0.01, 0), (0.3, 2000))] * 4
    running = state.pop("running")
    world.sample(name, running=min(running, 8), waiting=max(0, running - 8), steps=steps, **state)
    world.scheduler.cache_changed(name, MODEL, held, ())
    replica = next(each for each in world.scheduler.fleet.placeable(MODEL) if each.worker.target == name)
    for _ in range(reserved):
        world.scheduler.reservations.reserve(replica, world.now, 100, 200)


def _told(choice: Choice) -> dict[str, float]:
    """All numbers that it comes with, by where they are from."""
    assert choice.forecast is not None
    assert choice.forecasts is not None
    told: dict[str, float] = {}
    for forecast in (choice.forecast, *choice.forecasts):
        name = forecast.replica.worker.target
        told |= {f"{name} {part}": seconds for part, seconds in forecast.parts_s.items()}
        told |= {
            f"{name} ttft": forecast.ttft_s,
            f"{name} step": forecast.step_s,
            f"{name} cost": forecast.cost_s,
            f"{name} cached": forecast.cached_tokens,
        }
    return told


@pytest.mark.parametrize("workers", [FEW, FEW + 1, 40])
def test_an_explanation_shows_the_moment_of_the_decision_whatever_came_later(workers: int) -> None:
    world = world_of(*(f"w{number}" for number in range(workers)))
    world.sample("w1", running=3, queued_prefill_tokens=50)
    placed = world.place(**prompt(1, 1024))
    before = placed.scene.candidates((), frozenset())
    for number in range(workers):
        world.sample(f"w{number}", running=SLOTS - 2, queued_prefill_tokens=9999, steps=[FAST, FAST])
    for number in range(20):
        world.place(**prompt(number + 2, 1024))
    world.lost("w1")
    world.pass_time(5.0)
    assert placed.scene.candidates((), frozenset()) == before
    assert len(before) == FORECASTS_KEPT
    assert before[0].worker_id == placed.reservation.replica.worker.id
    costs = [seen.forecast.cost_s for seen in before if seen.forecast is not None]
    assert costs == sorted(costs)
    assert len(costs) == FORECASTS_KEPT


def test_a_fleet_that_grows_and_shrinks_past_what_few_is_keeps_its_figures() -> None:
    world = world_of(*(f"w{number}" for number in range(FEW + 6)))
    world.sample("w7", running=0, queued_prefill_tokens=0)
    for number in range(FEW + 6):
        if number != 7:
            world.sample(f"w{number}", running=20, queued_prefill_tokens=9000)
    assert target(world.place(**prompt(1, 1024))) == "w7"
    for number in range(20, FEW + 6):
        world.lost(f"w{number}")
    assert target(world.place(**prompt(2, 1024))) == "w7"
    world.sample("w7", running=30, queued_prefill_tokens=20_000)
    for number in range(20, FEW + 6):
        world.up(f"w{number}", slots=SLOTS)
        world.sample(f"w{number}", running=20, queued_prefill_tokens=9000, steps=[FAST])
    world.sample(f"w{FEW + 3}", running=1, steps=[FAST])
    assert isinstance(placed := world.last(world.ask(**prompt(3, 1024))), Placed)
    assert target(placed) == f"w{FEW + 3}"
