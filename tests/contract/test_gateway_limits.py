"""What one client may cost the gateway: each limit is answered by a typed error or a clean end."""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.contract.fake_fleet import answer, gateway_on_fakes
from tests.contract.raw_http import raw_connection, request
from tests.contract.test_gateway_http import CHAT, chat, until

LIVE = request("/health/live")


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"hello there\r\n\r\n", 400, "bad_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, "bad_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "bad_request"),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found"),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method_not_allowed"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nBad\x01: y\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "bad_request"),
        (request("/" + "a" * 9_000), 414, "url_too_long"),
        (request("/", **{f"X-{number}": "y" for number in range(100)}), 431, "headers_too_large"),
        (request("/", X_Long="y" * 40_000), 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 400_000, 431, "headers_too_large"),
        (b"GET /" + b"y" * 400_000, 414, "url_too_long"),
        (b"POST / HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n", 413, "body_too_large"),
        (request(CHAT, chat(), Content_Encoding="gzip"), 415, "unsupported_encoding"),
        (request(CHAT, b"\x1f\x8b\x08\x00garbage", Content_Encoding="gzip"), 415, "unsupported_encoding"),
        (request(CHAT, chat(), Content_Encoding="identity"), 200, None),
        (request(CHAT, chat(), Content_Type="application/x-www-form-urlencoded"), 200, None),
        (request(CHAT, chat(), Content_Type="text/plain"), 200, None),
        (request(CHAT, chat(), Host="somebody.else.example"), 200, None),
        (request(CHAT, chat(), Expect="100-continue"), 100, None),
    ],
)
async def test_what_is_no_request_is_answered_and_said_goodbye(
    sent: bytes, status: int, code: str | None
) -> None:
    async with gateway_on_fakes() as fleet, raw_connection(fleet.url) as raw:
        raw.send(sent)
        response = await raw.answer()
        assert response.status == status
        if code is not None:
            assert response.error["code"] == code
            assert response.error["message"]
            assert response.headers["x-request-id"]
        if status not in (100, 200, 404):
            assert response.headers["connection"] == "close"
            assert await raw.closed() == b""
        assert (await fleet.http.get("/health/live")).status_code == 200


async def test_a_body_in_chunks_is_cut_off_at_the_limit() -> None:
    async with gateway_on_fakes(max_body_bytes=10_000) as fleet, raw_connection(fleet.url) as raw:
        raw.send(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        piece = b"3e8\r\n" + b" " * 1000 + b"\r\n"
        raw.send(*[piece] * 11)
        response = await raw.answer()
        assert response.status == 413
        assert response.error["code"] == "body_too_large"
        assert "10000 bytes" in response.error["message"]
        raw.send(*[piece] * 1000)
        assert await raw.closed() == b""
        assert 'tokenfleet_gateway_refused_total{code="body_too_large"} 1.0' in (
            (await fleet.http.get("/metrics")).text
        )


async def test_the_largest_body_is_still_served_whole_and_in_chunks() -> None:
    async with gateway_on_fakes(max_body_bytes=10_000) as fleet, raw_connection(fleet.url) as raw:
        body = json.dumps(chat()).encode().ljust(10_000)
        raw.send(request(CHAT, body))
        assert (await raw.answer()).status == 200
        raw.send(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for start in range(0, 10_000, 100):
            raw.send(b"64\r\n", body[start : start + 100], b"\r\n")
        raw.send(b"0\r\nTrailer: of no interest\r\n\r\n")
        assert (await raw.answer()).status == 200
        raw.send(LIVE)
        assert (await raw.answer()).status == 200


async def test_an_endless_body_of_a_request_that_was_answered_ends_the_connection() -> None:
    async with gateway_on_fakes(max_body_bytes=10_000) as fleet, raw_connection(fleet.url) as raw:
        raw.send(b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert (await raw.answer()).status == 404
        raw.send(*[b"3e8\r\n" + b" " * 1000 + b"\r\n"] * 1000)
        assert await raw.closed() == b""


@pytest.mark.parametrize(
    ("sent", "part"),
    [
        (b"GET /health", "headers"),
        (b"GET /health/live HTTP/1.1\r\nHost: x\r\n", "headers"),
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\n{", "body"),
        (b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n", "body"),
    ],
)
async def test_a_client_that_dawdles_is_told_so(sent: bytes, part: str) -> None:
    limits: dict[str, Any] = {"header_timeout_s": 0.3, "body_timeout_s": 0.3}
    async with gateway_on_fakes(**limits) as fleet, raw_connection(fleet.url) as raw:
        started = time.perf_counter()
        raw.send(sent)
        answering = asyncio.create_task(raw.answer())
        while not answering.done():
            raw.send(b"X" if part == "headers" else b"")
            await asyncio.wait([answering], timeout=0.05)
        response = await answering
        assert time.perf_counter() - started > 0.2
        assert response.status == 408
        assert part in response.error["message"]
        assert await raw.closed() == b""


async def test_a_client_that_says_nothing_is_left_and_empty_lines_are_nothing() -> None:
    async with gateway_on_fakes(keep_alive_s=1) as fleet, raw_connection(fleet.url) as raw:
        started = time.perf_counter()
        closing = asyncio.create_task(raw.closed())
        while not closing.done():
            raw.send(b"\r\n")
            await asyncio.wait([closing], timeout=0.1)
        assert await closing == b""
        assert time.perf_counter() - started > 0.9


async def test_a_request_takes_its_time_and_keeps_its_connection() -> None:
    """None of the time-outs may hit a client that did nothing wrong."""
    async with gateway_on_fakes(header_timeout_s=0.2, body_timeout_s=0.2, keep_alive_s=1) as fleet:
        fleet.workers[0].hold = True
        async with raw_connection(fleet.url) as raw:
            whole = request(CHAT, chat(stream=True))
            raw.send(whole[:30])
            await asyncio.sleep(0.1)
            raw.send(whole[30:-10])
            await asyncio.sleep(0.1)
            raw.send(whole[-10:])
            await until(lambda: fleet.workers[0].running)
            await asyncio.sleep(1.5)
            fleet.workers[0].hold = False
            fleet.workers[0].step()
            response = await raw.answer()
            assert response.status == 200
            assert response.body.endswith(b"[DONE]\n\n")
            await asyncio.sleep(0.5)
            raw.send(LIVE)
            assert (await raw.answer()).status == 200


async def test_connections_beyond_the_limit_are_turned_away_with_advice() -> None:
    async with gateway_on_fakes(max_connections=3) as fleet:

        async def status() -> int:
            async with raw_connection(fleet.url) as raw:
                raw.send(LIVE)
                return (await raw.answer()).status

        async with AsyncExitStack() as stack:
            raws = [await stack.enter_async_context(raw_connection(fleet.url)) for _ in range(4)]
            for raw in raws[:3]:
                raw.send(LIVE)
                assert (await raw.answer()).status == 200
            raws[3].send(request(CHAT, chat()))
            response = await raws[3].answer()
            assert response.status == 503
            assert response.error["code"] == "too_many_connections"
            assert response.headers["retry-after"] == "1"
            assert await raws[3].closed() == b""
            raws[1].send(LIVE)
            assert (await raws[1].answer()).status == 200
        async with asyncio.timeout(5):
            while await status() != 200:
                await asyncio.sleep(0.01)


async def test_pipelined_requests_are_answered_in_order_up_to_the_limit() -> None:
    async with gateway_on_fakes(max_pipelined=4) as fleet:
        async with raw_connection(fleet.url) as raw:
            prompts = [f"prompt {number}" for number in range(5)]
            raw.send(b"".join(request(CHAT, chat(prompt)) for prompt in prompts))
            for prompt in prompts:
                content = json.loads((await raw.answer()).body)["choices"][0]["message"]["content"]
                assert content == answer(prompt, 20)
        async with raw_connection(fleet.url) as raw:
            raw.send(LIVE * 10_000)
            for _ in range(5):
                assert (await raw.answer()).status == 200
            assert await raw.closed() == b""


async def test_garbage_behind_a_stream_does_not_disturb_the_stream() -> None:
    async with gateway_on_fakes() as fleet, raw_connection(fleet.url) as raw:
        fleet.workers[0].hold = True
        raw.send(request(CHAT, chat(stream=True)))
        await until(lambda: fleet.workers[0].running)
        raw.send(b"\x00garbage\r\n\r\n")
        raw.send(b"more of it" * 1000)
        await asyncio.sleep(0.1)
        fleet.workers[0].hold = False
        fleet.workers[0].step()
        response = await raw.answer()
        assert response.status == 200
        assert response.body.endswith(b"[DONE]\n\n")
        assert await raw.closed() == b""


async def test_a_large_pipelined_body_is_refused_in_its_turn() -> None:
    async with gateway_on_fakes(max_body_bytes=10_000) as fleet, raw_connection(fleet.url) as raw:
        fleet.workers[0].hold = True
        chunked = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        raw.send(request(CHAT, chat(stream=True)) + chunked + b"4e20\r\n" + b" " * 20_000)
        await until(lambda: fleet.workers[0].running)
        fleet.workers[0].hold = False
        fleet.workers[0].step()
        first, second = await raw.answer(), await raw.answer()
        assert (first.status, second.status) == (200, 413)
        assert await raw.closed() == b""


async def test_an_offer_to_upgrade_to_http_2_is_declined_without_losing_the_body() -> None:
    async with gateway_on_fakes() as fleet, raw_connection(fleet.url) as raw:
        offer = {
            "Connection": "Upgrade, HTTP2-Settings",
            "Upgrade": "h2c",
            "HTTP2-Settings": "AAEAAEAAAAIAAAAB",
        }
        whole = request(CHAT, chat(), **offer)
        raw.send(whole)
        assert (await raw.answer()).status == 200
        raw.send(whole[:-20])
        await asyncio.sleep(0.05)
        raw.send(whole[-20:])
        assert (await raw.answer()).status == 200
        raw.send(LIVE)
        assert (await raw.answer()).status == 200


async def test_a_stream_that_is_not_read_ends_with_a_typed_event_and_frees_its_worker() -> None:
    async with gateway_on_fakes(client_buffer_bytes=4096, unsent_bytes=4096) as fleet:
        async with raw_connection(fleet.url, receive_buffer=4096) as raw:
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
            raw.send(request(CHAT, chat(stream=True, max_tokens=900, return_token_ids=True)))
            async with asyncio.timeout(10):
                while "slow_consumer" not in (await fleet.http.get("/metrics")).text:
                    await asyncio.sleep(0.05)
            raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
            said = await raw.closed()
        assert said.count(b'"code":"slow_consumer"') == 1
        assert b"[DONE]" not in said
        await until(lambda: not fleet.workers[0].running)


async def test_a_client_that_never_reads_is_cut_off_even_when_its_answer_is_complete() -> None:
    async with gateway_on_fakes(write_timeout_s=0.5, keep_alive_s=1) as fleet:
        async with raw_connection(fleet.url, receive_buffer=4096) as raw:
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
            raw.send(request(CHAT, chat("x" * 50_000, max_tokens=1, return_token_ids=True)) * 16)
            async with asyncio.timeout(10):
                while "slow_consumer" not in (await fleet.http.get("/metrics")).text:
                    await asyncio.sleep(0.05)
        assert not fleet.workers[0].running


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"letters"}',
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"model":"letters","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"letters","messages":[{"role":"user","content":"x"}],"temperature":Infinity}',
        b'{"model":"letters","messages":[{"role":"user","content":"x"}],"max_tokens":1e999}',
        b'{"model":"letters","messages":[{"role":"user","content":"x"}],"' + b"k" * 1_000_000 + b'":1}',
        b'{"model":"letters","prompt":[' + b"1.5," * 1_000_000 + b"1.5]}",
        b'{"model":"letters","messages":[' + b"{}," * 1_000_000 + b"{}]}",
        b'{"model":"letters","messages":[{"role":"user","content":[' + b"{}," * 1_000_000 + b"{}]}]}",
        b"{" + b",".join(b'"key%d":1' % number for number in range(500_000)) + b"}",
        b'{"model":"letters","stop":[' + b'"",' * 1_000_000 + b'""],"messages":[]}',
        b"\xef\xbb\xbf{}",
        b"{}{}",
        b"null",
    ],
    ids=lambda body: repr(body[:24]),
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_hostile_json_is_a_cheap_client_error(body: bytes, path: str) -> None:
    async with gateway_on_fakes() as fleet:
        started = time.process_time()
        response = await fleet.http.post(path, content=body)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] == "invalid_value"
        assert len(error["message"]) < 500
        assert time.process_time() - started < 1


async def test_of_keys_given_twice_the_last_counts() -> None:
    async with gateway_on_fakes() as fleet:
        body = json.dumps(chat()).encode()[:-1] + b',"max_tokens":3}'
        response = await fleet.http.post(CHAT, content=body)
        assert response.json()["choices"][0]["message"]["content"] == answer("hello", 3)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("0.3", 504),
        ("1e9", 200),
        ("30", 200),
        ("0", 400),
        ("-1", 400),
        ("nan", 400),
        ("soon", 400),
        ("", 400),
    ],
)
async def test_the_client_can_lower_the_deadline(given: str, status: int) -> None:
    async with gateway_on_fakes() as fleet:
        fleet.workers[0].hold = status == 504
        response = await fleet.http.post(CHAT, json=chat(), headers={"X-Request-Timeout": given})
        assert response.status_code == status
        if status == 504:
            assert "0.3 s" in response.json()["error"]["message"]
            await until(lambda: fleet.workers[0].cancels)


async def test_the_maximum_stays_the_maximum() -> None:
    async with gateway_on_fakes(request_timeout_s=0.3) as fleet:
        fleet.workers[0].hold = True
        response = await fleet.http.post(CHAT, json=chat(), headers={"X-Request-Timeout": "60"})
        assert response.status_code == 504


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/nope", None),
        ("GET", "/nothing", None),
        ("GET", CHAT, None),
        ("POST", CHAT, chat()),
        ("POST", CHAT, chat(stream=True)),
        ("POST", CHAT, {}),
    ],
)
async def test_request_ids_go_out_as_they_came_in(method: str, path: str, body: Any) -> None:
    async with gateway_on_fakes() as fleet:
        named = await fleet.http.request(method, path, json=body, headers={"X-Request-Id": "mine-1"})
        assert named.headers["x-request-id"] == "mine-1"
        nameless = await fleet.http.request(method, path, json=body)
        assert len(nameless.headers["x-request-id"]) > 16
        hostile = await fleet.http.request(method, path, json=body, headers={b"X-Request-Id": b"\xe9"})
        assert hostile.headers["x-request-id"].isascii()


async def test_pages_of_this_machine_may_read_and_others_may_not() -> None:
    async with gateway_on_fakes(allowed_origins=["localhost", "https://chat.example"]) as fleet:
        for origin, allowed in [
            ("http://localhost:3000", True),
            ("https://chat.example", True),
            ("http://chat.example", False),
            ("https://evil.example", False),
            ("http://localhost.evil.example", False),
            ("null", False),
            ("http://[", False),
        ]:
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            preflight = await fleet.http.options(CHAT, headers=asked)
            assert preflight.status_code == (204 if allowed else 403)
            for body in (chat(), chat(stream=True), {}):
                response = await fleet.http.post(CHAT, json=body, headers={"Origin": origin})
                assert response.headers.get("access-control-allow-origin") == (origin if allowed else None)
            models = await fleet.http.get("/v1/models", headers={"Origin": origin})
            assert models.headers.get("access-control-allow-origin") == (origin if allowed else None)
