"""Speeds are learned from steps alone: of any machine, after a slow-down, in spite of outliers."""

import random
from collections.abc import Callable, Iterator

import pytest

from tokenfleet.core.scheduling.speed import Price, Step, StepSpeed

TRUE = Price(0.012, 0.000_15, 1 / 8000, 2e-8)
# (batch, prefill tokens, context tokens) to predict.
SCENES = ((1, 0, 100), (32, 0, 30_000), (8, 2048, 8_000), (64, 0, 100_000))


def steps(slowness: float = 1.0, outliers: float = 0.01, seed: int = 1) -> Iterator[Step]:
    """What a machine shows that is so many times slower than `TRUE`."""
    source = random.Random(seed)
    while True:
        batch = source.randint(1, 64)
        prefill = source.choice([0, 0, 0, source.randint(1, 2048)])
        context = batch * source.randint(100, 2000)
        seconds = slowness * TRUE.step_s(batch, prefill, context) * source.uniform(0.95, 1.05)
        yield Step(seconds * (10 if source.random() < outliers else 1), batch, prefill, context)


def taught(source: Iterator[Step], count: int, speed: StepSpeed | None = None) -> StepSpeed:
    speed = speed or StepSpeed()
    for _ in range(count):
        speed.learn(next(source))
    return speed


def worst_error(speed: StepSpeed, slowness: float) -> float:
    """The greatest relative error over the scenes."""
    return max(abs(speed.price.step_s(*scene) / (slowness * TRUE.step_s(*scene)) - 1) for scene in SCENES)


@pytest.mark.parametrize("slowness", [0.03, 0.2, 1.0, 30.0])
def test_the_speed_of_any_machine_is_learned(slowness: float) -> None:
    source = steps(slowness)
    speed = taught(source, 30)
    assert worst_error(speed, slowness) < 0.5
    assert worst_error(taught(source, 500, speed), slowness) < 0.25


def test_a_machine_that_becomes_slow_is_known_to_be_within_a_few_steps() -> None:
    speed = taught(steps(), 300)
    assert worst_error(taught(steps(4.0), 20, speed), 4.0) < 0.3
    assert worst_error(taught(steps(1.0), 20, speed), 1.0) < 0.3


@pytest.mark.parametrize("seconds", [lambda expected: 100 * expected, lambda expected: expected / 100])
def test_one_odd_step_is_no_slow_machine(seconds: Callable[[float], float]) -> None:
    speed = taught(steps(outliers=0), 300)
    speed.learn(Step(seconds(TRUE.step_s(8, 0, 8000)), 8, 0, 8000))
    assert worst_error(speed, 1.0) < 0.35


def test_no_price_is_below_zero_however_collinear_the_steps() -> None:
    speed = StepSpeed()
    for batch in (1, 2, 3, 2, 1) * 50:
        speed.learn(Step(0.01 + 0.001 * batch, batch, 0, 100 * batch))
    price = speed.price
    assert min(price.base_s, price.per_sequence_s, price.per_prefill_token_s, price.per_context_token_s) >= 0
    assert price.step_s(2, 0, 200) == pytest.approx(0.012, rel=0.1)


def test_before_any_step_the_prior_holds() -> None:
    assert StepSpeed(TRUE).price == TRUE
