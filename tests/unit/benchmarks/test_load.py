"""Requests are well-formed, as long as asked, and no two are alike."""

import json
from typing import Any

import pytest

from loadtest.driver.load import Load, RequestFactory


def body(request: bytes) -> dict[str, Any]:
    head, _, content = request.partition(b"\r\n\r\n")
    assert f"content-length: {len(content)}".encode() in head
    value: dict[str, Any] = json.loads(content)
    return value


@pytest.mark.parametrize("characters", [10, 128, 512])
def test_prompts_have_the_length_asked_for_and_differ_from_the_first_word(characters: int) -> None:
    factory = RequestFactory(Load(host="h", port=1, model="m", prompt_chars=characters))
    prompts = [body(factory.next())["messages"][0]["content"] for _ in range(200)]
    assert {len(prompt) for prompt in prompts} == {characters}
    assert len({prompt.split()[0] for prompt in prompts}) == 200


def test_the_same_seed_gives_the_same_requests() -> None:
    load = Load(host="h", port=1, model="m", seed=7)
    first, second = RequestFactory(load), RequestFactory(load)
    assert [first.next() for _ in range(70)] == [second.next() for _ in range(70)]


def test_the_form_follows_the_load() -> None:
    stream = body(RequestFactory(Load(host="h", port=1, model="m")).next())
    whole = body(RequestFactory(Load(host="h", port=1, model="m", chat=False, stream=False)).next())
    assert stream["stream_options"] == {"include_usage": True}
    assert "stream" not in whole
    assert isinstance(whole["prompt"], str)


def test_a_load_survives_its_way_to_another_process() -> None:
    load = Load(host="h", port=1, model="m", rate=2.5, stream=False, stagger_s=0.25)
    assert Load.from_json(load.to_json()) == load


def test_a_prompt_too_short_for_its_number_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        RequestFactory(Load(host="h", port=1, model="m", prompt_chars=9))
