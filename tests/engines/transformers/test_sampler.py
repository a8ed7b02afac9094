"""What each parameter does to a row of logits."""

from collections import Counter
from typing import Any

import pytest

from tests.engines.installed import needs

pytestmark = needs("torch", "transformers")

LOGITS = [0.0, 1.0, 3.0, 2.0, -1.0]


def draws(
    logits: list[float] = LOGITS, ids: tuple[int, ...] = (), prompt: int = 0, **asked: Any
) -> Counter[int]:
    """Of 400 draws, how many gave which id."""
    import torch

    from tokenfleet.worker.engines.transformers.sampler import Sampler

    sampler = Sampler({"seed": 1, **asked}, list(ids), prompt, {2}, torch.device("cpu"))
    return Counter(sampler.draw(torch.tensor(logits)) for _ in range(400))


def only(**asked: Any) -> int:
    (token,) = draws(temperature=0, **asked)
    return token


def test_at_no_temperature_the_likeliest_is_taken() -> None:
    assert only() == 2


def test_the_temperature_spreads_and_truncations_cut() -> None:
    assert set(draws(temperature=3.0)) == {0, 1, 2, 3, 4}
    assert set(draws(temperature=3.0, top_k=2)) == {2, 3}
    assert set(draws(temperature=1.0, top_p=0.7)) == {2, 3}
    assert set(draws(temperature=1.0, top_p=0.01)) == {2}
    assert set(draws(temperature=1.0, min_p=0.3)) == {2, 3}
    counts = draws(temperature=1.0, top_k=2)
    assert counts[2] / 400 == pytest.approx(0.731, abs=0.08)  # 1 / (1 + exp(-1))


def test_penalties_look_at_what_they_should() -> None:
    assert only(ids=(2,), prompt=1, repetition_penalty=4.0) == 3  # prompts count for repetition
    assert only(ids=(2,), prompt=1, presence_penalty=5.0) == 2  # and for nothing else
    assert only(ids=(9, 2), prompt=1, presence_penalty=1.5) == 3
    assert only(ids=(9, 2), prompt=1, frequency_penalty=0.6) == 2
    assert only(ids=(9, 2, 2), prompt=1, frequency_penalty=0.6) == 3
    assert only(logits=[-3.0, -1.0, -2.0, -9.0, -9.0], ids=(1,), prompt=1, repetition_penalty=3.0) == 2


def test_biases_and_bans() -> None:
    assert only(logit_bias={"4": 10.0}) == 4
    assert only(logit_bias={"2": -100.0, "99": 5.0}) == 3
    assert only(min_tokens=1) == 3  # the end token is not allowed yet
    assert only(min_tokens=1, stop_token_ids=[3]) == 1
    assert only(ids=(9, 9), prompt=1, min_tokens=1) == 2


def test_plain_rows_are_those_that_need_no_drawing() -> None:
    import torch

    from tokenfleet.worker.engines.transformers.sampler import Sampler

    def plain(**asked: Any) -> bool:
        return Sampler({"temperature": 0, **asked}, [1, 2], 1, {2}, torch.device("cpu")).plain

    assert plain()
    assert plain(min_tokens=1)  # it has one
    for asked in ({"temperature": 1}, {"min_tokens": 2}, {"logit_bias": {"1": 1}}, {"presence_penalty": 1}):
        assert not plain(**asked)
