"""When a streamed response begins: once, whoever asks for it first, and not at all behind an error."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from tokenfleet.gateway.http.chunks import ChunkStyle
from tokenfleet.gateway.http.headers import Headers
from tokenfleet.gateway.http.sinks import StreamSink
from tokenfleet.gateway.write_batch import WriteBatch


class Wire:
    """In the place of the response: what was written, in order."""

    def __init__(self) -> None:
        self.written: list[str] = []

    async def begin(self, headers: Headers, first: Callable[[], bytes]) -> None:
        del headers
        self.written += ["head", *filter(None, [first().decode()])]

    def write(self, data: bytes) -> None:
        self.written.append(data.decode())

    async def end(self, last: bytes) -> None:
        self.written += [last.decode(), "end"]


def sink_on(wire: Wire) -> StreamSink:
    connection = SimpleNamespace(transport=None, flow=SimpleNamespace(write_paused=False))
    style = ChunkStyle(chat=True, answer_id="a", created=0, model="m", usage=False)
    return StreamSink(
        cast(Any, wire),
        cast(Any, connection),
        style,
        WriteBatch(),
        headers=[],
        choices=1,
        with_ids=False,
        buffer_bytes=100,
        on_slow=lambda error: None,
    )


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_placement_that_comes_with_the_end_of_patience_opens_it_once() -> None:
    wire = Wire()
    sink = sink_on(wire)
    sink.open_while_waiting()
    await sink.open()
    await turns()
    assert wire.written.count("head") == 1
    assert wire.written[0] == "head"
    assert "assistant" in "".join(wire.written)


async def test_what_comes_before_the_headers_follows_them() -> None:
    wire = Wire()
    sink = sink_on(wire)
    sink.open_while_waiting()
    opening = asyncio.ensure_future(sink.open())
    sink.delta(0, "hello", [1])
    await opening
    await sink.finish(b"last")
    assert wire.written[0] == "head"
    assert wire.written[-2:] == ["last", "end"]
    assert "hello" in wire.written[-3]


async def test_headers_that_have_not_gone_leave_the_status_to_the_error() -> None:
    wire = Wire()
    sink = sink_on(wire)
    sink.open_while_waiting()
    sink.give_up_opening()
    await turns()
    assert not sink.started
    assert wire.written == []
