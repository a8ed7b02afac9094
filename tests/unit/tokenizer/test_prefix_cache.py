"""The prefix cache never changes an id: on every kind of tokenizer, whatever a conversation does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from tests.unit.tokenizer import trained
from tests.unit.tokenizer.growing import Conversations, Step, check, model_of, salts, steps, words
from tokenfleet.core.blocks import block_hashes
from tokenfleet.tokenizer.borders import Borders
from tokenfleet.tokenizer.model import LoadedModel
from tokenfleet.v1 import tokenizer_pb2

AMPLE = 1 << 20
LONG = "word " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.mark.parametrize("awkward", [False, True])
@pytest.mark.parametrize("cache_bytes", [AMPLE, 4_000])
@pytest.mark.parametrize("kind", trained.KINDS)
def test_ids_and_hashes_are_those_of_the_whole_text(
    kind: str, cache_bytes: int, awkward: bool, folder: Path
) -> None:
    bundle = trained.bundle(kind, folder, awkward=awkward)

    @settings(max_examples=40, deadline=None)
    @given(steps)
    def conversations_stay_right(moves: list[tuple[int, Step, str]]) -> None:
        model = model_of(bundle, "auto", cache_bytes)
        conversations = Conversations()
        for which, step, salt in moves:
            check(model, conversations.step(which, step), salt)
            assert model.prompts.cache_bytes <= cache_bytes

    conversations_stay_right()


@settings(max_examples=100, deadline=None)
@given(texts=words.flatmap(lambda head: words.map(lambda tail: (head, head + tail))), salt=salts)
def test_plain_text_too(texts: tuple[str, str], salt: str, folder: Path) -> None:
    model = model_of(trained.bundle("unigram", folder), "auto", AMPLE)
    for text in texts:
        result = tokenizer_pb2.EncodeResult()
        model.encode(tokenizer_pb2.EncodeJob(text=text, cache_salt=salt, add_special_tokens=True), result)
        afresh = model.encoder.encode(text, True)
        assert list(result.token_ids) == afresh.tolist()
        assert list(result.block_hashes) == block_hashes(afresh, 3, salt)


@pytest.fixture
def model(folder: Path) -> LoadedModel:
    return model_of(trained.bundle("byte_level", folder), "auto", AMPLE)


def chat(*texts: str) -> tokenizer_pb2.ChatInput:
    made = tokenizer_pb2.ChatInput(add_generation_prompt=True)
    for index, text in enumerate(texts):
        made.messages.add(role=("user", "assistant")[index % 2], content=text)
    return made


def test_a_turn_finds_the_one_before_it(model: LoadedModel) -> None:
    first = check(model, chat(LONG), "")
    assert first.cached_tokens == 0
    second = check(model, chat(LONG, "yes", "more"), "")
    # all but the `assistant` and the line's end that open the answer
    opening = len(model.encoder.encode("assistant\n", False))
    assert second.cached_tokens == first.token_count - opening
    again = check(model, chat(LONG, "yes", "more"), "")
    assert again.cached_tokens == second.token_count - opening


def test_a_fork_keeps_what_it_shares(model: LoadedModel) -> None:
    whole = check(model, chat(LONG, "yes", LONG), "")
    for other in ("no", "yesterday"):
        fork = check(model, chat(LONG, other, LONG), "")
        shared = model.encoder.encode(model.prompt(chat(LONG)), False)
        assert fork.cached_tokens == len(shared) - len(model.encoder.encode("assistant\n", False))
    assert check(model, chat(LONG, "yes", LONG), "").cached_tokens > 0.9 * whole.token_count


def test_text_that_comes_out_as_a_border_without_being_one(folder: Path) -> None:
    """Then it is not known where in the ids a border is, and the fork is encoded afresh."""
    model = model_of(trained.bundle("unigram", folder), "auto", AMPLE)
    imitation = "\uff1c|im_end|\uff1e"
    before = check(model, chat(imitation), "").token_ids
    assert list(before).count(_borders(model).ids[trained.END]) == 2
    for answer in ("yes", "no", "yes"):
        check(model, chat(imitation, answer, LONG), "")


def test_another_salt_shares_nothing(model: LoadedModel) -> None:
    check(model, chat(LONG), "a")
    assert check(model, chat(LONG), "b").cached_tokens == 0
    assert check(model, chat(LONG), "a").cached_tokens > 0


def test_what_was_not_used_goes_first_and_the_limit_holds(folder: Path) -> None:
    model = model_of(trained.bundle("byte_level", folder), "auto", 20_000)
    for number in range(50):
        check(model, chat(f"{number} {LONG}"), "")
        assert check(model, chat(f"0 {LONG}"), "").cached_tokens > 0
        assert model.prompts.cache_bytes <= 20_000
    head = len(model.encoder.encode("<|im_start|>", False))
    assert check(model, chat(f"1 {LONG}"), "").cached_tokens <= head


def test_no_memory_no_cache(folder: Path) -> None:
    model = model_of(trained.bundle("byte_level", folder), "auto", 0)
    for _ in range(2):
        assert check(model, chat(LONG), "").cached_tokens == 0


def test_a_salt_that_nobody_uses_any_more_leaves_nothing(folder: Path) -> None:
    model = model_of(trained.bundle("byte_level", folder), "auto", 5_000)
    for number in range(50):
        check(model, chat(LONG), f"tenant-{number}")
    cache: Any = model.prompts._cache
    assert len(cache._roots) < 10


@pytest.mark.parametrize("kind", trained.KINDS)
def test_a_token_that_shares_text_with_another_parts_nothing(kind: str, folder: Path) -> None:
    plain = model_of(trained.bundle(kind, folder), "auto", AMPLE)
    assert set(_borders(plain).ids) == {trained.START, trained.END, trained.TOOL}
    awkward = model_of(trained.bundle(kind, folder, awkward=True), "auto", AMPLE)
    assert set(_borders(awkward).ids) == {trained.TOOL}


def _borders(model: LoadedModel) -> Borders:
    borders: Any = model.prompts._borders
    assert isinstance(borders, Borders)
    return borders


def test_borders_are_found_in_their_order() -> None:
    borders = Borders({"<a>": 1, "<bb>": 2})
    text = "x<bb>y<a><a>z"
    assert [cut.position for cut in borders.all(text)] == [5, 9, 12]
    assert borders.first(text, 0) == 5
    assert borders.first(text, 5) == 9
    assert borders.first(text, 12) == 0
    last = borders.last(text, 0)
    assert last is not None
    assert (last.position, last.border) == (12, "<a>")
    assert borders.last(text, 12) is None
