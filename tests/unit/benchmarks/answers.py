"""Answers as a server would send them, whole: tests cut them up."""

from __future__ import annotations

import json
from typing import Any


def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    value = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": choices} | more
    return b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def delta(content: str | None = None, *, finish: str | None = None, role: str | None = None) -> bytes:
    change = {"role": role} if role else {}
    if content is not None:
        change["content"] = content
    return event([{"index": 0, "delta": change, "finish_reason": finish}], usage=None)


def usage(tokens: int) -> bytes:
    return event([], usage={"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens})


DONE = b"data: [DONE]\n\n"


def stream(texts: list[str], *, tokens: int | None = None, finish: str = "length") -> list[bytes]:
    """The events of a chat stream."""
    count = len(texts) if tokens is None else tokens
    return [
        delta("", role="assistant"),
        *(delta(text) for text in texts),
        delta(finish=finish),
        usage(count),
        DONE,
    ]


def chunked(pieces: list[bytes]) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    )
    return head + b"\r\n" + body + b"0\r\n\r\n"


def counted(status: int, value: Any) -> bytes:
    body = json.dumps(value).encode()
    head = (
        f"HTTP/1.1 {status} Whatever\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
