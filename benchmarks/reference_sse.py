"""The least that a Python process can do to stream tokens: what the gateway's cost is put in relation to.

Absolute times differ between machines, and on shared ones between minutes. This server answers the same
requests with frames of the same size at the same pace, one transport write per token, from a timer: no
tokenizer, no router, no worker, no parsing of JSON. Measured by the same driver on the same core in the same
run, it is the unit in which `gateway_over_bare@N` is counted.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
from typing import Annotated, cast

import typer
import uvloop

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)


class TokenClock:
    """One timer for all streams: every step, each of them gets one frame."""

    def __init__(self, itl_s: float) -> None:
        self._itl_s = itl_s
        self._loop = asyncio.get_running_loop()
        self._streams: list[Stream] = []
        self._next = self._loop.time() + itl_s
        self._timer = self._loop.call_at(self._next, self._step)

    def stop(self) -> None:
        self._timer.cancel()

    def join(self, stream: Stream) -> None:
        self._streams.append(stream)

    def _step(self) -> None:
        self._streams = [stream for stream in self._streams if stream.step()]
        self._next += self._itl_s
        self._timer = self._loop.call_at(self._next, self._step)


class Stream(asyncio.Protocol):
    """One connection; requests follow each other on it."""

    def __init__(self, clock: TokenClock, ttft_s: float) -> None:
        self._clock = clock
        self._ttft_s = ttft_s
        self._received = b""
        self._left = 0
        self._frame = b""
        self._tail = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank or len(body) < _content_length(head):
            return
        self._received = b""
        request = json.loads(body)
        tokens = request["max_tokens"]
        answer = self._begin_stream if request.get("stream") else self._answer_whole
        asyncio.get_running_loop().call_later(self._ttft_s, answer, request["model"], tokens)

    def step(self) -> bool:
        """Writes the next frame; whether there is more to come."""
        if self._transport is None:
            return False
        self._transport.write(self._frame)
        self._left -= 1
        if self._left:
            return True
        self._transport.write(self._tail)
        return False

    def _begin_stream(self, model: str, tokens: int) -> None:
        if self._transport is None:
            return
        self._left = tokens
        self._frame = _chunk(_event(model, [{"index": 0, "delta": {"content": " token"}}]))
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        self._tail = b"".join(
            (
                _chunk(_event(model, [{"index": 0, "delta": {}, "finish_reason": "length"}])),
                _chunk(_event(model, [], usage)),
                _chunk(b"data: [DONE]\n\n"),
                b"0\r\n\r\n",
            )
        )
        opening = _event(model, [{"index": 0, "delta": {"role": "assistant", "content": ""}}])
        self._transport.write(_HEAD + _chunk(opening))
        if self.step():
            self._clock.join(self)

    def _answer_whole(self, model: str, tokens: int) -> None:
        if self._transport is None:
            return
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": " token" * tokens},
            "finish_reason": "length",
        }
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        body = json.dumps({"id": "chatcmpl-0", "model": model, "choices": [choice], "usage": usage}).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0


def _event(model: str, choices: list[dict[str, object]], usage: dict[str, int] | None = None) -> bytes:
    """As large as the gateway's own frames, whose fields it has."""
    full = [{"logprobs": None, "finish_reason": None} | choice for choice in choices]
    value = {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": model,
        "choices": full,
        "usage": usage,
    }
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


async def serve(port: int, ttft_s: float, itl_s: float) -> None:
    """Serves until SIGTERM; prints the port once it listens."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    clock = TokenClock(itl_s)
    server = await loop.create_server(lambda: Stream(clock, ttft_s), "127.0.0.1", port, backlog=4096)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stopped.wait()
    clock.stop()
    server.close()


def main(
    port: Annotated[int, typer.Option(help="0: a free one, which is printed")] = 0,
    ttft_ms: Annotated[float, typer.Option(min=0)] = 5.0,
    itl_ms: Annotated[float, typer.Option(min=1)] = 20.0,
    cpu: Annotated[int, typer.Option(help="core to stay on; -1: any")] = -1,
) -> None:
    """Streams tokens to whoever asks, as cheaply as uvloop can."""
    if cpu >= 0:
        os.sched_setaffinity(0, [cpu])
    uvloop.run(serve(port, ttft_ms / 1000, itl_ms / 1000))


if __name__ == "__main__":
    typer.run(main)
