"""Whatever a client sends: a typed answer or a clean end, nothing left behind, and everybody else is served.

Searched by Hypothesis with a bounded number of examples, the same in every run. To search further:

    TOKENFLEET_TEST_EXAMPLES=50 pytest tests/contract/test_gateway_properties.py --timeout 3600
"""

import asyncio
import json
import re
from typing import Any

import grpc
import pytest
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from tests.contract.fake_fleet import answer
from tests.contract.holding import holds, serves, unharmed
from tests.contract.hostile import (
    BODIES,
    HEADERS,
    JSON,
    PIECES,
    REQUESTS,
    frames,
    in_pieces,
    mutated_bytes,
    mutated_json,
)
from tests.contract.openapi import check_socket_message
from tests.contract.raw_http import Raw, raw_connection, request
from tests.contract.test_gateway_grpc import chatting, deltas, generating, sampling, text_of
from tests.contract.test_gateway_http import CHAT, chat
from tests.contract.test_gateway_websocket import HANDSHAKE, hear_out, open_socket, send
from tests.contract.test_gateway_websocket import text_of as socket_text
from tokenfleet.v1 import inference_pb2 as api
from tokenfleet.v1 import inference_pb2_grpc, tokenizer_pb2

Capture = pytest.CaptureFixture[str]
Log = pytest.LogCaptureFixture

STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) ")
ANSWERED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}
METHODS = ("Generate", "Chat", "CountTokens", "ListModels")
GRPC_REQUESTS = [
    generating(n=2, request_id="mine", return_token_ids=True).SerializeToString(),
    generating(tokens=tokenizer_pb2.TokenInput(token_ids=[1, 2, 3])).SerializeToString(),
    chatting().SerializeToString(),
    sampling(temperature=0.5, stop=["x"], stop_token_ids=[1], seed=7, top_k=3).SerializeToString(),
    api.CountTokensRequest(model="letters", text="hello").SerializeToString(),
]


async def talk(url: str, pieces: list[bytes], *, abort: bool = False) -> list[int]:
    """Says it all, listens to the end, and gives the statuses of what was answered."""
    async with raw_connection(url) as raw:
        await say(raw, pieces)
        if abort:
            return []
        return [int(status) for status in STATUS_LINE.findall(await raw.closed())]


async def say(raw: Raw, pieces: list[bytes]) -> None:
    """Stops when the gateway has heard enough; otherwise says that this was all."""
    for piece in pieces:
        if raw.writer.is_closing():
            return
        raw.send(piece)
        await asyncio.sleep(0)
    if not raw.writer.is_closing():
        raw.writer.write_eof()


async def test_any_bytes_on_the_http_port(capfd: Capture, caplog: Log) -> None:
    async with unharmed(capfd, caplog) as fleet:

        async def law(said: tuple[list[bytes], bool]) -> None:
            statuses = await talk(fleet.url, said[0], abort=said[1])
            assert all(status < 500 for status in statuses)

        await holds(law, st.tuples(PIECES | in_pieces(st.binary(max_size=3000)), st.booleans()), 60)


async def test_requests_with_something_wrong_in_their_bytes(capfd: Capture, caplog: Log) -> None:
    async with unharmed(capfd, caplog) as fleet:

        async def law(said: tuple[list[bytes], bool]) -> None:
            statuses = await talk(fleet.url, said[0], abort=said[1])
            assert all(status < 500 or status == 504 for status in statuses)

        await holds(law, st.tuples(in_pieces(mutated_bytes(REQUESTS)), st.booleans()), 150)


async def test_a_request_cut_off_anywhere_leaves_nothing(capfd: Capture, caplog: Log) -> None:
    async with unharmed(capfd, caplog) as fleet:
        fleet.workers[0].hold = True
        whole = request(CHAT, chat(stream=True))

        async def law(cut: int) -> None:
            await talk(fleet.url, [whole[:cut]], abort=True)
            await fleet.idle()

        await holds(law, st.integers(0, len(whole)), 40)
        fleet.workers[0].hold = False


async def test_who_leaves_in_the_middle_of_a_body_makes_no_noise(capfd: Capture, caplog: Log) -> None:
    async with unharmed(capfd, caplog) as fleet:
        for path, bodies in BODIES.items():
            await talk(fleet.url, [request(path, bodies[0])[:-1]])


async def test_any_headers(capfd: Capture, caplog: Log) -> None:
    async with unharmed(capfd, caplog) as fleet:
        start = request(CHAT, chat()).partition(b"\r\n\r\n")

        async def law(headers: list[tuple[bytes, bytes]]) -> None:
            lines = b"".join(b"\r\n%b: %b" % header for header in headers)
            statuses = await talk(fleet.url, [start[0] + lines + start[1] + start[2]])
            assert all(status < 500 for status in statuses)

        await holds(law, HEADERS, 100)


async def test_any_json_and_requests_with_something_wrong_in_it(capfd: Capture, caplog: Log) -> None:
    """Each answer is held against the document by the client itself."""
    async with unharmed(capfd, caplog) as fleet:

        async def law(asked: tuple[str, Any]) -> None:
            path, body = asked
            response = await fleet.http.post(path, content=json.dumps(body).encode())
            assert response.status_code in (200, 400, 404)

        anything = st.tuples(st.sampled_from(list(BODIES)), JSON)
        nearly = st.one_of(
            [st.tuples(st.just(path), mutated_json(bodies)) for path, bodies in BODIES.items()]
        )
        await holds(law, anything | nearly | nearly, 200)


async def test_any_bytes_and_frames_on_a_socket(capfd: Capture, caplog: Log) -> None:
    async with unharmed(capfd, caplog) as fleet:
        handshake = request("/v1/stream", **HANDSHAKE)

        async def law(said: tuple[list[bytes], bool]) -> None:
            pieces, abort = said
            async with raw_connection(fleet.url) as raw:
                raw.send(handshake)
                assert (await raw.answer()).status == 101
                await say(raw, pieces)
                if not abort:
                    await raw.closed()

        garbage = in_pieces(st.binary(max_size=600) | frames() | frames() | frames())
        await holds(law, st.tuples(garbage, st.booleans()), 150)
        async with open_socket(fleet) as client:
            await send(client, chat(request_id="after"))
            assert socket_text(await hear_out(client), "after") == answer("hello", 20)


async def test_text_that_is_none_makes_no_noise(capfd: Capture, caplog: Log) -> None:
    async with unharmed(capfd, caplog) as fleet, raw_connection(fleet.url) as raw:
        raw.send(request("/v1/stream", **HANDSHAKE))
        assert (await raw.answer()).status == 101
        raw.send(b"\x01\x81\0\0\0\0\xc3" + b"\x80\x81\0\0\0\0a")
        heard = await raw.closed()
        assert b"invalid_utf8" in heard
        assert (1007).to_bytes(2, "big") in heard


async def test_any_json_on_a_socket_and_requests_with_something_wrong_in_it(
    capfd: Capture, caplog: Log
) -> None:
    async with unharmed(capfd, caplog) as fleet:
        asked = [
            *(body | {"request_id": "a", "timeout": 9} for path in list(BODIES)[:2] for body in BODIES[path]),
            {"type": "cancel", "request_id": "a"},
        ]

        async def law(messages: list[Any]) -> None:
            async with open_socket(fleet) as client:
                for message in messages:
                    await send(client, message)
                await send(client, {"type": "no such type"})  # answered at once
                while (heard := json.loads(await client.recv())).get("error", {}).get("param") != "type":
                    check_socket_message(heard)
                    assert heard.get("error", {}).get("code") != "internal"

        await holds(law, st.lists(JSON | mutated_json(asked) | mutated_json(asked), max_size=6), 80)


async def test_a_fragmented_message_is_whole_and_too_large_a_one_ends_the_socket(
    capfd: Capture, caplog: Log
) -> None:
    async with unharmed(capfd, caplog, max_body_bytes=5_000) as fleet:

        async def law(asked: tuple[list[int], int]) -> None:
            cuts, padding = asked
            text = json.dumps(chat(request_id="a")) + " " * padding
            ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
            async with open_socket(fleet) as client:
                try:
                    await client.send(text[start:end] for start, end in zip([0, *ends], ends, strict=False))
                    heard = await hear_out(client)
                except ConnectionClosed:
                    heard = []
            if len(text) <= 5_000:
                assert socket_text(heard, "a") == answer("hello", 20)
            else:
                assert [one["error"]["code"] for one in heard] in (["message_too_large"], [])

        await holds(law, st.tuples(st.lists(st.integers(0, 200), max_size=9), st.integers(0, 9_000)), 40)


async def outcome(call: Any) -> tuple[str, str]:
    """The status with which a call ends, and its message."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


async def test_any_message_and_metadata_over_grpc(capfd: Capture, caplog: Log) -> None:
    async with (
        unharmed(capfd, caplog) as fleet,
        grpc.aio.insecure_channel(fleet.grpc) as channel,
    ):

        async def law(asked: tuple[str, bytes, list[tuple[str, str]]]) -> None:
            method, raw, metadata = asked
            call: Any = channel.unary_stream(f"/tokenfleet.v1.Inference/{method}")
            status, details = await outcome(call(raw, metadata=metadata, timeout=5))
            assert status in ANSWERED, details
            assert details or status == "OK"

        key = st.from_regex(r"x-[a-z0-9_.-]{1,20}", fullmatch=True).filter(lambda name: name[-4:] != "-bin")
        metadata = st.lists(
            st.tuples(key, st.text(st.characters(min_codepoint=32, max_codepoint=126))), max_size=4
        )
        methods = st.sampled_from(METHODS) | st.sampled_from(["Nothing", ""])
        raws = st.binary(max_size=300) | mutated_bytes(GRPC_REQUESTS) | mutated_bytes(GRPC_REQUESTS)
        await holds(law, st.tuples(methods, raws, metadata), 200)
        stub = inference_pb2_grpc.InferenceStub(channel)
        assert text_of(await deltas(stub.Generate(generating()))) == answer("hello", 20)


async def test_any_bytes_on_the_grpc_port(capfd: Capture, caplog: Log) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
    async with unharmed(capfd, caplog) as fleet:

        async def law(said: tuple[bool, list[bytes]]) -> None:
            begins, pieces = said
            await talk(f"http://{fleet.grpc}", [preface, *pieces] if begins else pieces)

        await holds(law, st.tuples(st.booleans(), in_pieces(st.binary(max_size=600))), 40)
        await serves(fleet)
        async with grpc.aio.insecure_channel(fleet.grpc) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            assert text_of(await deltas(stub.Generate(generating()))) == answer("hello", 20)
