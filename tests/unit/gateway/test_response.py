"""A response that is written past ASGI leaves the same bytes, and uvicorn's cycle as ASGI would leave it."""

import asyncio
import logging
from typing import Any, cast

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tokenfleet.gateway.http.headers import CLOSE
from tokenfleet.gateway.http.response import Response

JSON = (b"content-type", b"application/json")


class Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class Bench:
    def __init__(self, *, keep_alive: bool = True) -> None:
        self.transport = Transport()
        transport = cast(asyncio.Transport, self.transport)
        self.completed = 0
        self.flow = FlowControl(transport)
        log = logging.getLogger(__name__)
        self.cycle = RequestResponseCycle(
            scope=cast(Any, {"type": "http", "method": "POST"}),
            transport=transport,
            flow=self.flow,
            logger=log,
            access_logger=log,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=self.complete,
        )
        self.response = Response.of(cast(Any, self.cycle.send))

    def complete(self) -> None:
        self.completed += 1


async def as_asgi_would(bench: Bench, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    start = {"type": "http.response.start", "status": status, "headers": headers}
    await bench.cycle.send(cast(Any, start))
    await bench.cycle.send({"type": "http.response.body", "body": body, "more_body": False})
    return b"".join(bench.transport.written)


@pytest.mark.parametrize(("headers", "keep_alive"), [([JSON], True), ([JSON, CLOSE], True), ([JSON], False)])
async def test_a_whole_response_is_one_write_of_what_asgi_would_send(
    headers: list[tuple[bytes, bytes]], keep_alive: bool
) -> None:
    expected, bench = Bench(keep_alive=keep_alive), Bench(keep_alive=keep_alive)
    wanted = await as_asgi_would(expected, 429, headers, b"{}")
    await bench.response.whole(429, headers, b"{}")
    (written,) = bench.transport.written
    assert sorted(written.split(b"\r\n")) == sorted(wanted.split(b"\r\n"))
    assert written.endswith(b"\r\n\r\n{}")
    for name in ("response_started", "response_complete", "keep_alive"):
        assert getattr(bench.cycle, name) == getattr(expected.cycle, name), name
    assert bench.transport.closed == expected.transport.closed
    assert bench.completed == expected.completed == 1


async def test_a_stream_begins_and_ends_in_one_write_each() -> None:
    bench = Bench()
    await bench.response.begin([], lambda: b"3\r\none\r\n")
    bench.response.write(b"3\r\ntwo\r\n")
    await bench.response.end(b"5\r\nthree\r\n")
    assert bench.transport.written == [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n",
        b"3\r\ntwo\r\n",
        b"5\r\nthree\r\n0\r\n\r\n",
    ]
    assert bench.cycle.response_complete
    assert bench.completed == 1


async def test_it_waits_for_a_client_that_does_not_read() -> None:
    bench = Bench()
    bench.flow.pause_writing()
    ending = asyncio.create_task(bench.response.whole(200, [JSON], b"{}"))
    await asyncio.sleep(0)
    assert not bench.transport.written
    bench.flow.resume_writing()
    await ending
    assert bench.cycle.response_complete


async def test_a_client_that_left_is_written_nothing() -> None:
    bench = Bench()
    bench.cycle.disconnected = True
    await bench.response.begin([], lambda: b"first")
    await bench.response.end(b"last")
    assert not bench.transport.written
    assert not bench.completed
