"""The WebSocket: many requests on one socket, and what a socket that misbehaves gets."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.contract.fake_fleet import FakeFleet, answer, breaking_after, gateway_on_fakes
from tests.contract.openapi import check_socket_message
from tests.contract.raw_http import raw_connection, request
from tests.contract.test_gateway_http import chat, until
from tokenfleet.v1 import common_pb2, router_pb2

PATIENCE_S = 5.0
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


@asynccontextmanager
async def open_socket(
    fleet: FakeFleet, path: str = "/v1/stream", **options: Any
) -> AsyncIterator[ClientConnection]:
    async with connect(fleet.url.replace("http", "ws") + path, **options) as client:
        yield client


async def send(client: ClientConnection, message: Any) -> None:
    await client.send(json.dumps(message))


async def hear(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        message: dict[str, Any] = json.loads(await client.recv())
        check_socket_message(message)
        return message


async def hear_out(client: ClientConnection, requests: int = 1) -> list[dict[str, Any]]:
    """Everything until so many requests have ended."""
    seen = []
    while requests:
        seen.append(await hear(client))
        requests -= seen[-1]["type"] == "error" or "usage" in seen[-1]
    return seen


async def closed(client: ClientConnection) -> int:
    """The code with which the gateway closes, whatever it says before."""
    async with asyncio.timeout(PATIENCE_S):
        await client.wait_closed()
    assert client.close_code is not None
    return client.close_code


def text_of(seen: list[dict[str, Any]], request_id: str, index: int = 0) -> str:
    deltas = [one for one in seen if one["type"] == "delta" and one["request_id"] == request_id]
    return "".join(one["text"] for one in deltas if one["index"] == index)


async def test_a_chat_is_streamed_and_ends_with_its_usage() -> None:
    async with gateway_on_fakes() as fleet, open_socket(fleet) as client:
        await send(client, chat(request_id="mine"))
        seen = await hear_out(client)
        assert text_of(seen, "mine") == answer("hello", 20)
        assert {one["request_id"] for one in seen} == {"mine"}
        assert seen[-1] == {
            "type": "finish",
            "request_id": "mine",
            "index": 0,
            "finish_reason": "length",
            "usage": {
                "prompt_tokens": 5,
                "completion_tokens": 20,
                "total_tokens": 25,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        }


async def test_a_completion_several_answers_and_a_request_id_of_the_gateway() -> None:
    async with gateway_on_fakes() as fleet, open_socket(fleet) as client:
        await send(
            client, {"type": "request", "model": "letters", "prompt": ["abc", "é"], "n": 2, "max_tokens": 9}
        )
        seen = await hear_out(client)
        name = seen[0]["request_id"]
        assert name.startswith("ws-")
        texts = [text_of(seen, name, index) for index in range(4)]
        assert texts == [answer("abc", 9)] * 2 + [answer("é", 9)] * 2
        finishes = [one for one in seen if one["type"] == "finish"]
        assert [one["index"] for one in finishes] == [0, 1, 2, 3]
        assert ["usage" in one for one in finishes] == [False, False, False, True]


async def test_many_requests_share_a_socket() -> None:
    async with gateway_on_fakes(workers=2) as fleet, open_socket(fleet) as client:
        names = [f"request {number}" for number in range(20)]
        for name in names:
            await send(client, chat(name, request_id=name))
        seen = await hear_out(client, len(names))
        for name in names:
            assert text_of(seen, name) == answer(name, 20)


async def test_a_lost_worker_does_not_show() -> None:
    async with gateway_on_fakes(workers=2) as fleet, open_socket(fleet) as client:
        fleet.workers[0].fail = breaking_after(7)
        await send(client, chat(request_id="a", return_token_ids=True, logprobs=True))
        seen = await hear_out(client)
        assert text_of(seen, "a") == answer("hello", 20)
        deltas = [one for one in seen if one["type"] == "delta"]
        assert len([token for one in deltas for token in one["token_ids"]]) == 20
        tokens = [entry["token"] for one in deltas for entry in one["logprobs"]["content"]]
        assert "".join(tokens) == answer("hello", 20)
        assert len(seen[-1]["tokenfleet"]["attempts"][0]) == 2


async def test_the_load_of_a_cold_model_is_told() -> None:
    async with gateway_on_fakes() as fleet, open_socket(fleet) as client:
        fleet.router.silent = True
        await send(client, chat(request_id="cold"))
        await until(lambda: fleet.router.asks)
        progress = common_pb2.LoadProgress(
            model="letters", stage=common_pb2.LoadProgress.STAGE_FETCHING, bytes_done=1, bytes_total=4
        )
        ask_id = fleet.router.asks[0].ask_id
        waiting = router_pb2.Decision(ask_id=ask_id, waiting=router_pb2.Waiting(load=progress))
        fleet.router.open_links[0].send(router_pb2.ScheduleResponse(decisions=[waiting]))
        assert await hear(client) == {
            "type": "loading",
            "request_id": "cold",
            "model": "letters",
            "stage": "fetching",
            "bytes_done": 1,
            "bytes_total": 4,
            "eta_s": None,
        }


async def test_cancel_ends_one_request_and_no_other() -> None:
    async with gateway_on_fakes() as fleet, open_socket(fleet) as client:
        fleet.workers[0].hold = True
        await send(client, chat(request_id="a"))
        await send(client, chat(request_id="b"))
        await until(lambda: len(fleet.workers[0].running) == 2)
        await send(client, {"type": "cancel", "request_id": "a"})
        await send(client, {"type": "cancel", "request_id": "never heard of"})
        cancelled = await hear(client)
        assert (cancelled["type"], cancelled["request_id"]) == ("error", "a")
        assert cancelled["error"]["code"] == "cancelled"
        await until(lambda: len(fleet.workers[0].running) == 1)
        fleet.workers[0].hold = False
        fleet.workers[0].step()
        assert text_of(await hear_out(client), "b") == answer("hello", 20)


async def test_cancel_at_once_is_heard_too() -> None:
    async with gateway_on_fakes() as fleet, open_socket(fleet) as client:
        fleet.workers[0].hold = True
        for _ in range(20):
            await send(client, chat(request_id="a"))
            await send(client, {"type": "cancel", "request_id": "a"})
            assert (await hear(client))["error"]["code"] == "cancelled"
        await until(lambda: not fleet.workers[0].running)


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_closing_cancels_everything(how: str) -> None:
    async with gateway_on_fakes() as fleet:
        fleet.workers[0].hold = True
        async with open_socket(fleet) as client:
            for number in range(3):
                await send(client, chat(request_id=f"{number}"))
            await until(lambda: len(fleet.workers[0].running) == 3)
            if how == "abort":
                client.transport.abort()
        await until(lambda: not fleet.workers[0].running)
        await until(lambda: len(fleet.router.releases) == 3)


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ("{", None),
        ("", None),
        ("null", None),
        ("[]", None),
        ("[" * 100_000, None),
        ('{"type":"dance"}', "type"),
        ('{"type":5}', "type"),
        ('{"type":"cancel"}', "request_id"),
        ('{"type":"cancel","request_id":[]}', "request_id"),
        ('{"request_id":""}', "request_id"),
        ('{"request_id":"' + "x" * 500 + '"}', "request_id"),
        ('{"request_id":"a","model":"letters","prompt":NaN}', None),
        ("[" + "1," * 1_000_000 + "1]", None),
    ],
    ids=lambda sent: repr(sent)[:24],
)
async def test_garbage_gets_a_typed_error_and_the_socket_goes_on(sent: str, param: str | None) -> None:
    async with gateway_on_fakes() as fleet, open_socket(fleet) as client:
        await client.send(sent)
        heard = await hear(client)
        assert heard["type"] == "error"
        assert heard["request_id"] is None
        assert heard["error"]["code"] == "invalid_value"
        assert heard["error"]["message"]
        assert heard["error"]["param"] == param
        await send(client, chat(request_id="after"))
        assert text_of(await hear_out(client), "after") == answer("hello", 20)


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({}, "invalid_value", "model"),
        (chat(model="nope"), "model_not_found", None),
        (chat(temprature=1), "invalid_value", "temprature"),
        (chat(max_tokens="9"), "invalid_value", "max_tokens"),
        (chat("x" * 70_000), "context_length_exceeded", "messages"),
        (chat(n=99), "invalid_value", "n"),
        (chat(timeout=0), "invalid_value", "timeout"),
        (chat(timeout=True), "invalid_value", "timeout"),
        (chat(timeout="soon"), "invalid_value", "timeout"),
        (chat(priority="urgent"), "invalid_value", "priority"),
        (chat(priority=1), "invalid_value", "priority"),
        (chat(ttft_objective=0), "invalid_value", "ttft_objective"),
        (chat(itl_objective=True), "invalid_value", "itl_objective"),
        ({"model": "letters", "prompt": ""}, "invalid_value", "prompt"),
        (chat(tools=[{"type": "function"}]), "unsupported", "tools"),
        (
            chat(response_format={"type": "json_schema", "json_schema": {"schema": {"x": 2**70}}}),
            "invalid_value",
            None,
        ),
    ],
)
async def test_a_bad_request_is_named_by_its_id(
    message: dict[str, Any], code: str, param: str | None
) -> None:
    async with gateway_on_fakes() as fleet, open_socket(fleet) as client:
        await send(client, message | {"request_id": "bad"})
        heard = await hear(client)
        assert (heard["type"], heard["request_id"]) == ("error", "bad")
        assert heard["error"]["code"] == code
        if param is not None:
            assert heard["error"]["param"] == param
        await send(client, chat(request_id="after"))
        assert text_of(await hear_out(client), "after") == answer("hello", 20)


async def test_an_id_that_is_running_is_not_taken_twice() -> None:
    async with gateway_on_fakes() as fleet, open_socket(fleet) as client:
        fleet.workers[0].hold = True
        await send(client, chat(request_id="a"))
        await send(client, chat(request_id="a"))
        heard = await hear(client)
        assert heard["request_id"] is None
        assert "'a' is still running" in heard["error"]["message"]


async def test_requests_of_a_socket_are_bounded() -> None:
    async with gateway_on_fakes(max_socket_requests=2) as fleet, open_socket(fleet) as client:
        fleet.workers[0].hold = True
        for name in ("a", "b", "c"):
            await send(client, chat(request_id=name))
        heard = await hear(client)
        assert heard["request_id"] == "c"
        assert heard["error"]["code"] == "queue_full"
        assert heard["retry_after_s"] == 1.0


async def test_the_deadline_of_a_request() -> None:
    async with gateway_on_fakes() as fleet, open_socket(fleet) as client:
        fleet.workers[0].hold = True
        await send(client, chat(request_id="late", timeout=0.2))
        heard = await hear(client)
        assert heard["error"]["code"] == "deadline_exceeded"
        await until(lambda: fleet.workers[0].cancels)


@pytest.mark.parametrize(
    ("frames", "code", "name"),
    [
        (b"\x82\x83\0\0\0\0abc", 1003, "invalid_value"),
        (b"\x81\x83\0\0\0\0\xff\xfe\xfd", 1007, "invalid_utf8"),
        (b"\x81\xff\0\0\0\0\x10\0\0\0\0\0\0\0", 1009, "message_too_large"),
        (b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 5000, 1008, "too_many_frames"),
        (b"\x81\x80\0\0\0\0" * 20_000, 1008, "too_many_frames"),
        (b"\x89\x80\0\0\0\0" * 20_000, 1008, "too_many_frames"),
        (b"\x81\x03abc", 1002, "protocol_error"),
        (b"\x83\x80\0\0\0\0", 1002, "protocol_error"),
        (b"\xc1\x80\0\0\0\0", 1002, "protocol_error"),
        (b"\x00\x80\0\0\0\0", 1002, "protocol_error"),
        (b"\x89\xfe\x01\x00\0\0\0\0" + b"x" * 256, 1002, "protocol_error"),
        (b"GET / HTTP/1.1\r\n\r\n", 1002, "protocol_error"),
    ],
    ids=lambda frames: repr(frames)[:24],
)
async def test_what_breaks_the_protocol_is_named_and_ends_the_socket(
    frames: bytes, code: int, name: str
) -> None:
    async with gateway_on_fakes() as fleet, raw_connection(fleet.url) as raw:
        raw.send(request("/v1/stream", **HANDSHAKE))
        assert (await raw.answer()).status == 101
        raw.send(frames)
        heard = await asyncio.wait_for(raw.reader.readuntil(b"}}"), PATIENCE_S)
        raw.send(b"more of it" * 100_000)
        rest = heard + await raw.closed()
        assert f'"code":"{name}"'.encode() in rest
        assert bytes((0x88,)) in rest
        assert code.to_bytes(2, "big") in rest[rest.rindex(b"\x88") :]
        assert (await fleet.http.get("/health/live")).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/v1/nothing", {}, 404, "not_found"),
        ("/v1/chat/completions", {}, 404, "not_found"),
        ("/v1/stream", {"Origin": "https://evil.example"}, 403, "origin_not_allowed"),
        ("/v1/stream", {"Origin": "null"}, 403, "origin_not_allowed"),
    ],
)
async def test_no_socket_where_none_may_be(
    path: str, headers: dict[str, str], status: int, code: str
) -> None:
    async with gateway_on_fakes() as fleet:
        with pytest.raises(InvalidStatus) as refused:
            async with open_socket(fleet, path, additional_headers=headers):
                pass
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body or b"")["error"]["code"] == code


@pytest.mark.parametrize(
    "origin", ["http://localhost:5173", "http://127.0.0.1:8000", "https://fleet.example"]
)
async def test_pages_of_this_machine_and_of_this_address_may_connect(origin: str) -> None:
    async with gateway_on_fakes() as fleet, raw_connection(fleet.url) as raw:
        raw.send(
            request("/v1/stream", Origin=origin, **HANDSHAKE).replace(b"Host: x", b"Host: fleet.example")
        )
        assert (await raw.answer()).status == 101


@pytest.mark.parametrize(
    "changed",
    [
        {"Sec-WebSocket-Version": "7"},
        {"Sec-WebSocket-Key": "short"},
        {"X-Long": "y" * 9000},
        {"Upgrade": "websocket, h2c"},
        {"Connection": "keep-alive, Upgrade", "Sec-WebSocket-Key": ""},
    ],
    ids=str,
)
async def test_a_bad_handshake_is_answered(changed: dict[str, str]) -> None:
    async with gateway_on_fakes() as fleet, raw_connection(fleet.url) as raw:
        raw.send(request("/v1/stream", **(HANDSHAKE | changed)))
        assert 400 <= (await raw.answer()).status < 500
        assert (await fleet.http.get("/health/live")).status_code == 200


async def test_a_post_with_an_upgrade_is_served_as_a_post() -> None:
    async with gateway_on_fakes() as fleet, raw_connection(fleet.url) as raw:
        raw.send(request("/v1/chat/completions", chat(), **HANDSHAKE))
        assert (await raw.answer()).status == 200


async def test_a_dead_client_is_noticed_by_its_silence() -> None:
    async with (
        gateway_on_fakes(ping_interval_s=0.2, ping_timeout_s=0.2) as fleet,
        raw_connection(fleet.url) as raw,
    ):
        fleet.workers[0].hold = True
        raw.send(request("/v1/stream", **HANDSHAKE))
        assert (await raw.answer()).status == 101
        body = json.dumps(chat(request_id="a")).encode()
        raw.send(b"\x81\xfe" + len(body).to_bytes(2, "big") + b"\0\0\0\0" + body)
        await until(lambda: fleet.workers[0].running)
        await until(lambda: not fleet.workers[0].running)
        assert b"keepalive ping timeout" in await raw.closed()


async def test_pings_keep_an_idle_socket_open() -> None:
    pings: dict[str, Any] = {"ping_interval_s": 0.05, "ping_timeout_s": 0.5, "keep_alive_s": 1}
    async with gateway_on_fakes(**pings) as fleet, open_socket(fleet) as client:
        await asyncio.sleep(1.5)
        await send(client, chat(request_id="a"))
        assert text_of(await hear_out(client), "a") == answer("hello", 20)


# Long enough for their deltas to fill what the kernel buffers.
LONG_IDS = [f"{number:0120}" for number in range(40)]


def long_request(name: str) -> bytes:
    return json.dumps(chat(name[-3:], request_id=name, max_tokens=500, return_token_ids=True)).encode()


def small_socket(fleet: FakeFleet) -> socket.socket:
    """A connected socket that takes little before the sender has to wait."""
    parsed = httpx.URL(fleet.url)
    endpoint = socket.socket()
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    endpoint.connect((parsed.host, parsed.port))
    return endpoint


async def test_a_slow_reader_gets_merged_messages_and_keeps_everything() -> None:
    async with (
        gateway_on_fakes() as fleet,
        open_socket(fleet, sock=small_socket(fleet), max_queue=1) as client,
    ):
        for name in LONG_IDS:
            await client.send(long_request(name).decode())
        await until(lambda: len(fleet.workers[0].submits) == len(LONG_IDS) and not fleet.workers[0].running)
        seen = await hear_out(client, len(LONG_IDS))
        for name in LONG_IDS:
            assert text_of(seen, name) == answer(name[-3:], 500)
        assert len(seen) < len(LONG_IDS) * 500


async def test_one_that_does_not_read_at_all_loses_its_socket() -> None:
    async with gateway_on_fakes(client_buffer_bytes=4096) as fleet:
        async with raw_connection(fleet.url, receive_buffer=4096) as raw:
            raw.send(request("/v1/stream", **HANDSHAKE))
            assert (await raw.answer()).status == 101
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for name in LONG_IDS:
                body = long_request(name)
                raw.send(b"\x81\xfe" + len(body).to_bytes(2, "big") + b"\0\0\0\0" + body)
            async with asyncio.timeout(20):
                while "slow_consumer" not in (await fleet.http.get("/metrics")).text:
                    await asyncio.sleep(0.05)
        await until(lambda: not fleet.workers[0].running)
        async with open_socket(fleet) as client:
            await send(client, chat(request_id="next"))
            assert text_of(await hear_out(client), "next") == answer("hello", 20)


async def test_at_the_end_of_the_process_running_answers_finish_and_new_ones_are_sent_away() -> None:
    async with gateway_on_fakes(grace_s=5) as fleet, open_socket(fleet) as client, open_socket(fleet) as idle:
        fleet.workers[0].hold = True
        await send(client, chat(request_id="running"))
        await until(lambda: fleet.workers[0].running)
        fleet.lifecycle.stopping.set()
        assert await closed(idle) == 1012
        await send(client, chat(request_id="late"))
        heard = await hear(client)
        assert (heard["request_id"], heard["error"]["code"]) == ("late", "draining")
        fleet.workers[0].hold = False
        fleet.workers[0].step()
        assert text_of(await hear_out(client), "running") == answer("hello", 20)
        assert await closed(client) == 1012


async def test_what_outlives_the_grace_is_told_so() -> None:
    async with gateway_on_fakes(grace_s=1) as fleet, open_socket(fleet) as client:
        fleet.workers[0].hold = True
        await send(client, chat(request_id="endless"))
        await until(lambda: fleet.workers[0].running)
        fleet.lifecycle.stopping.set()
        heard = await hear(client)
        assert (heard["request_id"], heard["error"]["code"]) == ("endless", "draining")
        with pytest.raises(ConnectionClosed):
            await client.recv()
