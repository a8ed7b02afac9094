"""The gateway over HTTP: answers, migration, cancellation, and what bad input gets."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.contract.fake_fleet import (
    CONTEXT,
    FakeFleet,
    answer,
    breaking_after,
    failing_after,
    gateway_on_fakes,
)
from tokenfleet.v1 import common_pb2, router_pb2

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def chat(text: str = "hello", **extra: Any) -> dict[str, Any]:
    return {"model": "letters", "messages": [{"role": "user", "content": text}], "max_tokens": 20, **extra}


async def events(fleet: FakeFleet, path: str, body: dict[str, Any]) -> list[Any]:
    """Payloads of the stream's events, `[DONE]` as a string."""
    seen: list[Any] = []
    async with fleet.http.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                seen.append(data if data == "[DONE]" else json.loads(data))
    return seen


def texts(seen: list[Any], index: int = 0) -> str:
    choices = [c for one in seen if one != "[DONE]" for c in one.get("choices", []) if c["index"] == index]
    return "".join(c["delta"].get("content", "") if "delta" in c else c["text"] for c in choices)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("frames", [True, False], ids=["frames", "grpc"])
async def test_streamed_and_whole_answers_are_equal_and_usage_adds_up(frames: bool) -> None:
    async with gateway_on_fakes(frames=frames) as fleet:
        whole = (await fleet.http.post(CHAT, json=chat())).json()
        seen = await events(fleet, CHAT, chat(stream_options={"include_usage": True}))
        message = whole["choices"][0]["message"]
        assert message == {"role": "assistant", "content": answer("hello", 20)}
        assert texts(seen) == message["content"]
        assert seen[-1] == "[DONE]"
        assert seen[-2]["choices"] == []
        assert seen[-2]["usage"] == whole["usage"]
        assert whole["usage"]["prompt_tokens"] == 5
        assert whole["usage"]["completion_tokens"] == 20
        assert whole["usage"]["total_tokens"] == 25
        assert seen[-3]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "length"


async def test_completions_take_text_ids_and_batches() -> None:
    async with gateway_on_fakes() as fleet:
        base = {"model": "letters", "max_tokens": 5}
        one = (await fleet.http.post(COMPLETIONS, json=base | {"prompt": "abc"})).json()
        ids = (await fleet.http.post(COMPLETIONS, json=base | {"prompt": list(b"abc")})).json()
        two = (await fleet.http.post(COMPLETIONS, json=base | {"prompt": ["abc", "xyz"], "n": 2})).json()
        assert one["choices"][0]["text"] == ids["choices"][0]["text"] == answer("abc", 5)
        expected = [answer("abc", 5)] * 2 + [answer("xyz", 5)] * 2
        assert [choice["text"] for choice in two["choices"]] == expected
        assert [choice["index"] for choice in two["choices"]] == [0, 1, 2, 3]
        assert two["usage"]["prompt_tokens"] == 6
        assert two["usage"]["completion_tokens"] == 20


async def test_many_streams_do_not_mix() -> None:
    async with gateway_on_fakes(workers=2) as fleet:
        prompts = [f"prompt {number}" for number in range(16)]
        streams = await asyncio.gather(*(events(fleet, CHAT, chat(prompt, n=2)) for prompt in prompts))
        for prompt, seen in zip(prompts, streams, strict=True):
            assert texts(seen, 0) == texts(seen, 1) == answer(prompt, 20)


@pytest.mark.parametrize("frames", [True, False], ids=["frames", "grpc"])
@pytest.mark.parametrize("tokens", [1, 7, 19, 20])
async def test_a_broken_stream_goes_on_elsewhere_without_a_seam(tokens: int, frames: bool) -> None:
    async with gateway_on_fakes(workers=3, frames=frames) as fleet:
        fleet.workers[0].fail = breaking_after(tokens)
        fleet.workers[1].fail = breaking_after(3)
        seen = await events(fleet, CHAT, chat(stream_options={"include_usage": True}))
        assert texts(seen) == answer("hello", 20)
        assert seen[-2]["usage"]["completion_tokens"] == 20
        assert seen[-1] == "[DONE]"
        resumed = fleet.workers[1].submits or fleet.workers[2].submits
        assert resumed[0].attempt == 2
        assert resumed[0].prompt_tokens == 5
        assert resumed[0].emitted_chars == len(resumed[0].token_ids) - 5 <= tokens
        outcomes = [release.outcome for release in fleet.router.releases]
        assert router_pb2.Release.OUTCOME_WORKER_LOST in outcomes


async def test_provenance_names_each_attempt_for_clients_that_want_ids() -> None:
    async with gateway_on_fakes(workers=2) as fleet:
        fleet.workers[0].fail = breaking_after(4)
        whole = (await fleet.http.post(CHAT, json=chat(return_token_ids=True))).json()
        attempts = whole["tokenfleet"]["attempts"][0]
        assert attempts == [
            {"worker_id": "worker-0", "from_token": 0},
            {"worker_id": "worker-1", "from_token": 4},
        ]
        assert len(whole["choices"][0]["token_ids"]) == 20


async def test_engine_failures_in_a_row_end_with_a_typed_error() -> None:
    async with gateway_on_fakes(workers=4, max_attempts=3) as fleet:
        for worker in fleet.workers:
            worker.hold = True
            worker.links.port = 1
            await worker.links.stop()
        response = await fleet.http.post(CHAT, json=chat())
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "worker_lost"
        assert "3 workers failed in a row" in response.json()["error"]["message"]
        assert len(fleet.router.asks) == 3


async def test_failure_in_mid_stream_without_a_way_on_is_an_event_and_no_done() -> None:
    async with gateway_on_fakes(workers=1) as fleet:
        fleet.workers[0].fail = failing_after(4, common_pb2.REASON_ENGINE_FAILED)
        seen = await events(fleet, CHAT, chat())
        assert seen[-1]["error"]["code"] == "no_worker"
        assert texts(seen) == answer("hello", 4)
        assert all(one.get("choices", [{}])[0].get("finish_reason") is None for one in seen[:-1])


async def test_a_request_that_no_worker_can_do_is_not_tried_again() -> None:
    async with gateway_on_fakes(workers=2) as fleet:
        fleet.workers[0].fail = failing_after(1, common_pb2.REASON_UNSUPPORTED)
        response = await fleet.http.post(CHAT, json=chat())
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "unsupported"
        assert not fleet.workers[1].submits


async def test_a_client_that_leaves_is_cancelled_on_its_worker() -> None:
    async with gateway_on_fakes() as fleet:
        fleet.workers[0].hold = True
        async with fleet.http.stream("POST", CHAT, json=chat(stream=True)) as response:
            assert response.status_code == 200
            await until(lambda: fleet.workers[0].running)
        await until(lambda: fleet.workers[0].cancels)
        await until(lambda: fleet.router.releases)
        assert fleet.router.releases[0].outcome == router_pb2.Release.OUTCOME_CANCELLED


async def test_many_clients_that_leave_at_once_disturb_nobody() -> None:
    async with gateway_on_fakes() as fleet:
        worker = fleet.workers[0]
        worker.hold = True
        body = json.dumps(chat(stream=True, max_tokens=500)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        host, port = httpx.URL(fleet.url).netloc.decode().split(":")
        leaving = [await asyncio.open_connection(host, port) for _ in range(40)]
        for _, writer in leaving:
            writer.write(head + body)
        staying = asyncio.create_task(events(fleet, CHAT, chat(max_tokens=500)))
        await until(lambda: len(worker.running) == 41)
        worker.hold = False
        worker.step()
        await asyncio.gather(*(reader.readuntil(b"content") for reader, _ in leaving))
        for _, writer in leaving:
            writer.transport.abort()
        assert texts(await staying) == answer("hello", 500)
        assert "tokenfleet_gateway_migrations_total{" not in (await fleet.http.get("/metrics")).text


async def test_a_client_that_leaves_while_waiting_cancels_its_ask() -> None:
    async with gateway_on_fakes() as fleet:
        fleet.router.silent = True
        request = asyncio.create_task(fleet.http.post(CHAT, json=chat()))
        await until(lambda: fleet.router.asks)
        request.cancel()
        await until(lambda: fleet.router.cancels == [fleet.router.asks[0].ask_id])


async def test_the_deadline_is_a_typed_error_and_frees_the_worker() -> None:
    async with gateway_on_fakes(request_timeout_s=0.3) as fleet:
        fleet.workers[0].hold = True
        response = await fleet.http.post(CHAT, json=chat())
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
        await until(lambda: fleet.workers[0].cancels)


async def test_shedding_reaches_the_client_with_its_advice() -> None:
    async with gateway_on_fakes() as fleet:
        fleet.router.failure = common_pb2.Failure(
            reason=common_pb2.REASON_QUEUE_FULL, message="queue full", retry_after_ms=1500
        )
        response = await fleet.http.post(CHAT, json=chat(stream=True))
        assert response.status_code == 429
        assert response.headers["retry-after"] == "2"
        assert response.json()["error"]["code"] == "queue_full"


async def test_asks_survive_their_router() -> None:
    async with gateway_on_fakes() as fleet:
        fleet.router.silent = True
        request = asyncio.create_task(fleet.http.post(CHAT, json=chat()))
        await until(lambda: fleet.router.asks)
        fleet.router.silent = False
        fleet.router.open_links[0].abort()
        response = await request
        assert response.json()["choices"][0]["message"]["content"] == answer("hello", 20)


async def test_long_prompts_arrive_in_chunks() -> None:
    async with gateway_on_fakes() as fleet:
        text = "long " * 8_000
        body = {"model": "letters", "prompt": text, "max_tokens": 3}
        response = await fleet.http.post(COMPLETIONS, json=body)
        assert response.json()["choices"][0]["text"] == answer(text, 3)
        assert fleet.workers[0].submits[0].pending_chunks == 2


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_value", None),
        (b"\xff\xfe{}", 400, "invalid_value", None),
        (b"[]", 400, "invalid_value", "body"),
        (b"", 400, "invalid_value", None),
        (json.dumps(chat(messages=[])).encode(), 400, "invalid_value", "messages"),
        (json.dumps(chat(model="nope")).encode(), 404, "model_not_found", None),
        (json.dumps(chat(model=5)).encode(), 400, "invalid_value", "model"),
        (json.dumps(chat(max_tokens=0)).encode(), 400, "invalid_value", "max_tokens"),
        (json.dumps(chat(max_tokens=-1)).encode(), 400, "invalid_value", "max_tokens"),
        (json.dumps(chat(max_tokens=10**30)).encode(), 400, "invalid_value", "max_tokens"),
        (json.dumps(chat(max_tokens="9")).encode(), 400, "invalid_value", "max_tokens"),
        (json.dumps(chat(max_tokens=CONTEXT)).encode(), 400, "context_length_exceeded", "max_tokens"),
        (json.dumps(chat("x" * CONTEXT)).encode(), 400, "context_length_exceeded", "messages"),
        (json.dumps(chat(temperature=9)).encode(), 400, "invalid_value", "temperature"),
        (b'{"model":"letters","messages":[{"role":"user","content":"\\ud800"}]}', 400, "invalid_value", None),
        (json.dumps(chat(temprature=1)).encode(), 400, "invalid_value", "temprature"),
        (json.dumps(chat(n=99)).encode(), 400, "invalid_value", "n"),
        (json.dumps(chat(stop=[""])).encode(), 400, "invalid_value", None),
        (json.dumps(chat(tools=[{"type": "function"}])).encode(), 400, "unsupported", "tools"),
        (
            json.dumps(chat(messages=[{"role": "wizard", "content": "x"}])).encode(),
            400,
            "invalid_value",
            None,
        ),
        (json.dumps(chat(messages="hi")).encode(), 400, "invalid_value", "messages"),
    ],
)
async def test_bad_input_is_a_typed_client_error(
    body: bytes, status: int, code: str, param: str | None
) -> None:
    async with gateway_on_fakes() as fleet:
        response = await fleet.http.post(CHAT, content=body)
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert error["code"] == code
        assert error["message"]
        if param is not None:
            assert error["param"] == param
        assert (await fleet.http.post(CHAT, json=chat())).status_code == 200


async def test_a_context_error_names_both_lengths() -> None:
    async with gateway_on_fakes() as fleet:
        message = (await fleet.http.post(CHAT, json=chat("x" * 70_000))).json()["error"]["message"]
        assert str(CONTEXT) in message
        assert "70000" in message


async def test_models_health_and_unknown_paths() -> None:
    async with gateway_on_fakes() as fleet:
        models = (await fleet.http.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["letters"]
        assert (await fleet.http.get("/v1/models/letters")).json()["max_model_len"] == CONTEXT
        assert (await fleet.http.get("/v1/models/nope")).status_code == 404
        assert (await fleet.http.get("/health/live")).status_code == 200
        assert (await fleet.http.get("/health/ready")).json()["status"] == "ready"
        missing = await fleet.http.get("/v2/nothing")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "not_found"
        wrong = await fleet.http.get(CHAT)
        assert wrong.status_code == 405
        assert wrong.headers["allow"] == "POST"
        await fleet.http.post(CHAT, json=chat())
        metrics = (await fleet.http.get("/metrics")).text
        assert 'tokenfleet_gateway_tokens_total{kind="completion"}' in metrics


async def test_a_slow_reader_gets_merged_frames_and_keeps_everything() -> None:
    async with gateway_on_fakes() as fleet:
        body = json.dumps(chat(stream=True, max_tokens=900)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection(
            *httpx.URL(fleet.url).netloc.decode().split(":"), limit=2**20
        )
        writer.write(head + body)
        await until(lambda: not fleet.workers[0].running and fleet.workers[0].submits)
        raw = await asyncio.wait_for(reader.readuntil(b"[DONE]"), 10)
        writer.close()
        parts = [json.loads(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: {")]
        assert texts(parts) == answer("hello", 900)
