"""What a worker's accelerator says of itself, and what that does to the choice."""

import pytest

from tests.unit.scheduling.test_predicted import FAST, SLOTS, prompt, target, world_of
from tests.unit.scheduling.world import MODEL, World
from tokenfleet.core.scheduling import Device, LoadWish


@pytest.mark.parametrize("policy", ["predicted", "least_loaded"])
def test_a_faulty_device_takes_nothing_and_explain_says_why(policy: str) -> None:
    world = World(policy)
    for name in ("w1", "w2"):
        world.up(name, slots=SLOTS)
        world.sample(name, steps=[FAST] * 4)
    world.sample("w2", device=Device(("XID 79",)))
    for _ in range(10):
        placed = world.place(**prompt(1))
        assert target(placed) == "w1"
    vetoes = {seen.worker_id: seen.veto for seen in placed.scene.candidates((), frozenset())}
    assert vetoes == {"w1.1": "", "w2.1": "its accelerator is faulty: XID 79"}
    world.sample("w2")
    world.lost("w1")
    assert target(world.place(**prompt(1))) == "w2", "a fault that is gone does not count"


def test_no_model_is_wished_onto_a_faulty_device() -> None:
    world = World("predicted")
    world.up("w1", state=None)
    world.sample("w1", device=Device(("XID 79",)))
    assert world.refused(world.ask()) == "no_worker"
    world.sample("w1")
    world.ask()
    assert world.wishes == [LoadWish(MODEL)]


@pytest.mark.parametrize("device", [Device(throttled=True), Device(memory_used=0.995)])
def test_a_strained_device_is_asked_when_the_others_are_slower_by_more_than_that(device: Device) -> None:
    world = world_of("w1", "w2")
    world.sample("w2", device=device)
    first = world.place(**prompt(1, 64))
    assert target(first) == "w1"
    strained = {seen.worker_id: seen.forecast for seen in first.scene.candidates((), frozenset())}["w2.1"]
    assert strained is not None
    assert strained.parts_s["strain"] == 0.25
    world.sample("w1", queued_prefill_tokens=20_000)
    assert target(world.place(**prompt(2, 64))) == "w2"


def test_memory_that_an_engine_took_in_advance_is_no_strain() -> None:
    world = world_of("w1", "w2")
    world.sample("w1", device=Device(memory_used=0.92))
    world.sample("w2", running=1)
    assert target(world.place(**prompt(1, 64))) == "w1"
