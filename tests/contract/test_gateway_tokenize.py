"""`/tokenize` and `/detokenize`: what vLLM's clients expect of them."""

from typing import Any

import pytest

from tests.contract.fake_fleet import CONTEXT, gateway_on_fakes


async def test_text_becomes_tokens_and_tokens_become_text() -> None:
    async with gateway_on_fakes() as fleet:
        tokens = list("héllo".encode())
        response = await fleet.http.post("/tokenize", json={"model": "letters", "prompt": "héllo"})
        assert response.json() == {"count": len(tokens), "max_model_len": CONTEXT, "tokens": tokens}
        response = await fleet.http.post("/detokenize", json={"model": "letters", "tokens": tokens})
        assert response.json() == {"prompt": "héllo"}


@pytest.mark.parametrize(("asked", "sent"), [(None, True), (True, True), (False, False)])
async def test_special_tokens_are_added_unless_said_otherwise(asked: bool | None, sent: bool) -> None:
    async with gateway_on_fakes() as fleet:
        body = {"model": "letters", "prompt": "x", "add_special_tokens": asked}
        assert (await fleet.http.post("/tokenize", json=body)).status_code == 200
        assert fleet.tokenizer.jobs[-1].add_special_tokens is sent


@pytest.mark.parametrize("generation_prompt", [True, False])
async def test_a_conversation_goes_through_the_template(generation_prompt: bool) -> None:
    async with gateway_on_fakes() as fleet:
        messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hello"}]
        body = {"model": "letters", "messages": messages, "add_generation_prompt": generation_prompt}
        response = await fleet.http.post("/tokenize", json=body)
        assert response.json()["count"] == 5
        chat = fleet.tokenizer.jobs[-1].chat
        assert [message.role for message in chat.messages] == ["system", "user"]
        assert chat.add_generation_prompt is generation_prompt


async def test_longer_than_the_context_can_still_be_counted() -> None:
    async with gateway_on_fakes() as fleet:
        response = await fleet.http.post("/tokenize", json={"model": "letters", "prompt": "x" * 70_000})
        assert response.json()["count"] == 70_000


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {"model": "letters"}, 400, "prompt"),
        ("/tokenize", {"model": "letters", "prompt": "x", "messages": []}, 400, "messages"),
        ("/tokenize", {"model": "letters", "messages": []}, 400, "messages"),
        ("/tokenize", {"model": "nope", "prompt": "x"}, 404, None),
        ("/tokenize", {"model": "letters", "prompt": "x", "promt": "y"}, 400, "promt"),
        (
            "/tokenize",
            {"model": "letters", "prompt": "x", "return_token_strs": True},
            400,
            "return_token_strs",
        ),
        ("/tokenize", [], 400, "body"),
        ("/detokenize", {"model": "letters", "tokens": [1, 300]}, 400, "token_ids"),
        ("/detokenize", {"model": "letters", "tokens": [-1]}, 400, "tokens.0"),
        ("/detokenize", {"model": "letters", "tokens": [2**32]}, 400, "tokens.0"),
        ("/detokenize", {"model": "letters", "tokens": "1"}, 400, "tokens"),
        ("/detokenize", {"model": "letters"}, 400, "tokens"),
        ("/detokenize", {"model": "nope", "tokens": []}, 404, None),
    ],
)
async def test_bad_input_is_named(path: str, body: Any, status: int, param: str | None) -> None:
    async with gateway_on_fakes() as fleet:
        response = await fleet.http.post(path, json=body)
        assert response.status_code == status, response.text
        assert response.json()["error"]["message"]
        if param is not None:
            assert response.json()["error"]["param"] == param


async def test_empty_is_not_wrong() -> None:
    async with gateway_on_fakes() as fleet:
        assert (await fleet.http.post("/tokenize", json={"model": "letters", "prompt": ""})).json()[
            "count"
        ] == 0
        response = await fleet.http.post("/detokenize", json={"model": "letters", "tokens": []})
        assert response.json() == {"prompt": ""}


async def test_a_get_says_what_to_do() -> None:
    async with gateway_on_fakes() as fleet:
        response = await fleet.http.get("/tokenize")
        assert response.status_code == 405
        assert response.headers["allow"] == "POST"
        assert response.json()["error"]["code"] == "method_not_allowed"


async def test_without_a_tokenizer_the_deadline_counts() -> None:
    async with gateway_on_fakes() as fleet:
        await fleet.tokenizer.links.stop()
        body = {"model": "letters", "prompt": "x"}
        response = await fleet.http.post("/tokenize", json=body, headers={"X-Request-Timeout": "0.3"})
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"


async def test_more_tokens_than_may_be_shown_are_refused_with_both_numbers() -> None:
    async with gateway_on_fakes(max_body_values=2_000) as fleet:
        shown = await fleet.http.post("/tokenize", json={"model": "letters", "prompt": "x" * 2_000})
        assert shown.json()["count"] == 2_000
        response = await fleet.http.post("/tokenize", json={"model": "letters", "prompt": "x" * 2_001})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert "2001 tokens, and 2000 are shown" in error["message"]


async def test_a_prompt_without_any_token_is_refused() -> None:
    """Some vocabularies lack control characters, and a text of nothing else is nothing to a model."""
    async with gateway_on_fakes() as fleet:
        fleet.tokenizer.unknown = "\x04"
        body = {"model": "letters", "prompt": "\x04\x04", "max_tokens": 1}
        response = await fleet.http.post("/v1/completions", json=body)
        assert response.status_code == 400
        assert "no tokens" in response.json()["error"]["message"]
        assert not fleet.router.asks
