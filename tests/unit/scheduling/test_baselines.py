"""The baseline that follows prefixes, and policies by model."""

from collections import Counter

from tests.unit.scheduling.world import BLOCK_SIZE, MODEL, World
from tokenfleet.core.blocks import block_hashes
from tokenfleet.core.scheduling import Placed


def prompt(seed: int, tokens: int = 512) -> dict[str, object]:
    ids = range(seed * 100_000, seed * 100_000 + tokens)
    return {"prompt_tokens": tokens, "block_hashes": block_hashes(list(ids), BLOCK_SIZE)}


def world_of(*targets: str, policy: str = "prefix_approx") -> World:
    world = World(policy)
    for target in targets:
        world.up(target, slots=64)
    return world


def target(placed: Placed) -> str:
    return placed.reservation.replica.worker.target


def test_a_like_prompt_goes_where_the_first_one_went() -> None:
    world = world_of("w1", "w2", "w3")
    first = target(world.place(**prompt(1)))
    assert {target(world.place(**prompt(1, 640))) for _ in range(4)} == {first}
    assert target(world.place(**prompt(2))) != first


def test_a_short_common_beginning_does_not_count() -> None:
    world = world_of("w1", "w2")
    first = world.place(**prompt(1, 64))
    longer = world.place(**prompt(1, 1024))
    assert target(longer) != target(first)


def test_a_worker_that_is_far_busier_is_left_alone() -> None:
    world = world_of("w1", "w2", "w3", "w4")
    chosen = Counter(target(world.place(**prompt(1))) for _ in range(80))
    assert len(chosen) == 4
    assert max(chosen.values()) <= 40


def test_a_worker_that_was_restarted_has_no_history() -> None:
    world = world_of("w1")
    world.place(**prompt(1))
    world.up("w1", slots=64, epoch=2)
    assert world.place(**prompt(1)).why == "least loaded"
    assert "was sent" in world.place(**prompt(1)).why


def test_each_model_may_have_a_policy_of_its_own() -> None:
    world = World("least_loaded", by_model={MODEL: "round_robin"})
    for name in ("w1", "w2"):
        world.up(name, slots=8)
    world.sample("w1", running=3)
    assert [target(world.place()) for _ in range(4)] == ["w1", "w2", "w1", "w2"], "in turn, whatever the load"
    assert world.scheduler.policy.name_for(MODEL) == "round_robin"
    assert world.scheduler.policy.name_for("other") == "least_loaded"
