"""What only some engines can do: asked for where a worker offers it, refused where none does."""

import json
from typing import Any

import pytest

from tests.contract.fake_fleet import LETTERS, answer, breaking_after, gateway_on_fakes
from tests.contract.test_gateway_http import CHAT, COMPLETIONS, chat, events, texts

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def asking_for(schema: Any, **extra: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, **extra}}


def entry(letter: str, alternatives: int) -> dict[str, Any]:
    own = {"token": letter, "logprob": -float(LETTERS.index(letter)), "bytes": list(letter.encode())}
    other = {"token": "é", "logprob": -9999.0, "bytes": [0xC3, 0xA9]}
    return own | {"top_logprobs": [own, other][:alternatives]}


def entries(seen: list[Any], index: int = 0) -> list[Any]:
    choices = [c for one in seen if one != "[DONE]" for c in one.get("choices", []) if c["index"] == index]
    return [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]


@pytest.mark.parametrize("alternatives", [0, 1, 2, 20])
async def test_chat_logprobs_whole_and_streamed(alternatives: int) -> None:
    async with gateway_on_fakes() as fleet:
        asked = chat(logprobs=True, top_logprobs=alternatives, n=2)
        expected = [entry(letter, alternatives) for letter in answer("hello", 20)]
        whole = (await fleet.http.post(CHAT, json=asked)).json()
        assert [choice["logprobs"]["content"] for choice in whole["choices"]] == [expected] * 2
        seen = await events(fleet, CHAT, asked)
        assert entries(seen, 0) == entries(seen, 1) == expected
        assert texts(seen, 1) == answer("hello", 20)
        assert list(fleet.router.asks[0].required_features) == ["logprobs"]
        assert fleet.workers[0].submits[0].sampling.logprobs == alternatives


async def test_completion_logprobs_whole_and_streamed() -> None:
    async with gateway_on_fakes() as fleet:
        asked = {"model": "letters", "prompt": "abc", "max_tokens": 5, "logprobs": 1}
        text = answer("abc", 5)
        expected = {
            "tokens": list(text),
            "token_logprobs": [-float(LETTERS.index(letter)) for letter in text],
            "top_logprobs": [{letter: -float(LETTERS.index(letter))} for letter in text],
            "text_offset": [0, 1, 2, 3, 4],
        }
        whole = (await fleet.http.post(COMPLETIONS, json=asked)).json()
        assert whole["choices"][0]["logprobs"] == expected
        seen = await events(fleet, COMPLETIONS, asked)
        frames = [c["logprobs"] for one in seen[:-1] for c in one["choices"] if c["logprobs"]]
        for name, values in expected.items():
            assert [value for frame in frames for value in frame[name]] == values


async def test_logprobs_survive_their_worker() -> None:
    async with gateway_on_fakes(workers=2) as fleet:
        fleet.workers[0].fail = breaking_after(7)
        seen = await events(fleet, CHAT, chat(logprobs=True, return_token_ids=True))
        assert entries(seen) == [entry(letter, 0) for letter in answer("hello", 20)]
        assert [list(ask.required_features) for ask in fleet.router.asks] == [["logprobs"]] * 2


async def test_who_does_not_ask_gets_none() -> None:
    async with gateway_on_fakes() as fleet:
        for body in (chat(), chat(logprobs=False), chat(logprobs=None, top_logprobs=None)):
            assert (await fleet.http.post(CHAT, json=body)).json()["choices"][0]["logprobs"] is None
        assert not any(ask.required_features for ask in fleet.router.asks)
        assert not any(submit.sampling.HasField("logprobs") for submit in fleet.workers[0].submits)


@pytest.mark.parametrize(
    ("response_format", "sent"),
    [
        (None, ""),
        ({"type": "text"}, ""),
        ({"type": "json_object"}, '{"type":"object"}'),
        (asking_for(SCHEMA, strict=True), json.dumps(SCHEMA, separators=(",", ":"))),
        (asking_for({}, description="anything"), "{}"),
    ],
)
async def test_the_response_format_reaches_the_worker(response_format: Any, sent: str) -> None:
    async with gateway_on_fakes() as fleet:
        response = await fleet.http.post(CHAT, json=chat(response_format=response_format))
        assert response.status_code == 200
        assert fleet.workers[0].submits[0].sampling.json_schema == sent
        assert list(fleet.router.asks[0].required_features) == (["json_schema"] if sent else [])


async def test_seed_and_min_tokens_reach_the_worker() -> None:
    async with gateway_on_fakes() as fleet:
        await fleet.http.post(CHAT, json=chat(seed=-1, min_tokens=3))
        sampling = fleet.workers[0].submits[0].sampling
        assert (sampling.seed, sampling.min_tokens) == (2**64 - 1, 3)
        assert list(fleet.router.asks[0].required_features) == ["min_tokens"]


async def test_each_answer_gets_a_seed_of_its_own() -> None:
    async with gateway_on_fakes() as fleet:
        await fleet.http.post(CHAT, json=chat(seed=2**63 - 1, n=3))
        seeds = sorted(submit.sampling.seed for submit in fleet.workers[0].submits)
        assert seeds == [2**63 - 1, 2**63, 2**63 + 1]


@pytest.mark.parametrize(
    ("path", "extra", "code", "param"),
    [
        (CHAT, {"top_logprobs": 3}, "invalid_value", "top_logprobs"),
        (CHAT, {"logprobs": 3}, "invalid_value", "logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
        (COMPLETIONS, {"logprobs": -1}, "invalid_value", "logprobs"),
        (COMPLETIONS, {"echo": True}, "unsupported", "echo"),
        (CHAT, {"response_format": {"type": "xml"}}, "invalid_value", "response_format"),
        (CHAT, {"response_format": {"type": "json_schema"}}, "invalid_value", None),
        (CHAT, {"response_format": asking_for("no schema")}, "invalid_value", None),
        (CHAT, {"response_format": asking_for({"x": "y" * 70_000})}, "invalid_value", None),
    ],
)
async def test_what_makes_no_sense_is_refused(path: str, extra: Any, code: str, param: str | None) -> None:
    async with gateway_on_fakes() as fleet:
        body = chat(**extra) if path == CHAT else {"model": "letters", "prompt": "x", **extra}
        response = await fleet.http.post(path, json=body)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["code"] == code
        if param is not None:
            assert response.json()["error"]["param"] == param
        assert not fleet.router.asks


@pytest.mark.parametrize("extra", [{"logprobs": True}, {"response_format": {"type": "json_object"}}])
async def test_what_no_worker_offers_is_unsupported(extra: dict[str, Any]) -> None:
    async with gateway_on_fakes() as fleet:
        fleet.router.features.clear()
        for stream in (False, True):
            response = await fleet.http.post(CHAT, json=chat(stream=stream, **extra))
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "unsupported"
