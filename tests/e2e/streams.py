"""A client for hundreds of streams at once: raw sockets, one task each, everything kept."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools


@dataclass
class Answered:
    """What one streamed request brought."""

    prompt: str
    status: int = 0
    text: str = ""
    ids: list[int] = field(default_factory=list)
    frames: int = 0
    done: bool = False
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    error: str = ""

    def take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = str(event["error"]["message"])
        for choice in event.get("choices", ()):
            content = choice["delta"].get("content") if "delta" in choice else choice["text"]
            self.frames += bool(content)
            self.text += content or ""
            self.ids += choice.get("token_ids", ())
            self.finish_reason = choice["finish_reason"] or self.finish_reason
        self.usage = event.get("usage") or self.usage
        if "tokenfleet" in event:
            self.attempts = event["tokenfleet"]["attempts"][0]
            self.prompt_ids = event["prompt_token_ids"]


class _Body:
    """httptools' callbacks: the response's body, without its chunks."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


async def stream(url: str, path: str, body: dict[str, Any], prompt: str = "") -> Answered:
    """POSTs `body` with `stream` set and reads the answer to its end."""
    answered = Answered(prompt)
    parts = urlsplit(url)
    payload = json.dumps({"stream": True, **body}).encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: fleet\r\nContent-Length: {len(payload)}\r\n\r\n"
        writer.write(head.encode() + payload)
        callbacks = _Body()
        parser = httptools.HttpResponseParser(callbacks)
        while not callbacks.complete:
            data = await reader.read(65536)
            if not data:
                answered.error = "the connection broke"
                return answered
            parser.feed_data(data)
        answered.status = parser.get_status_code()
    finally:
        writer.close()
    if answered.status != 200:
        answered.error = callbacks.body.decode()
        return answered
    for line in bytes(callbacks.body).split(b"\n"):
        if line == b"data: [DONE]":
            answered.done = True
        elif line.startswith(b"data: "):
            answered.take(json.loads(line[6:]))
    return answered


def chat_body(model: str, prompt: str, max_tokens: int, **extra: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream_options": {"include_usage": True},
        **extra,
    }


async def chat(url: str, model: str, prompt: str, max_tokens: int, **extra: Any) -> Answered:
    return await stream(url, "/v1/chat/completions", chat_body(model, prompt, max_tokens, **extra), prompt)
