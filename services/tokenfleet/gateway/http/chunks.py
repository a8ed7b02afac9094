"""The bytes of a streamed answer: everything but the text is laid down once per request.

A frame is `data: {…"content":<text>…}` and an empty line, inside one HTTP chunk. Only the text differs
between the frames of a stream, so a token costs one JSON string, one join and one write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from tokenfleet.gateway.lanes import Mould, size_line
from tokenfleet.v1 import common_pb2 as pb

DONE = b"data: [DONE]\n\n"

FINISH_NAMES: dict[int, str] = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
}

# The few different endings there are, shared by all streams so that they stay in the cache.
_ENDINGS: dict[bytes, bytes] = {}


def chunk(body: bytes) -> bytes:
    """The body as one chunk of HTTP's chunked encoding."""
    return size_line(len(body)) + body + b"\r\n"


def event(value: Any) -> bytes:
    """One server-sent event with a JSON payload."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


class ChunkStyle:
    """How one request's frames look; `chat` or plain completion."""

    def __init__(self, *, chat: bool, answer_id: str, created: int, model: str, usage: bool) -> None:
        self._chat = chat
        self._usage = usage
        base = {
            "id": answer_id,
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": created,
            "model": model,
        }
        self._start = event(base).removesuffix(b"}\n\n") + b","

    def mould(self, index: int) -> Mould:
        """What stands around the text in the frames of answer `index`."""
        whole = self._choices([self._choice(index, "\0")])
        head, tail = whole.split(b'"\\u0000"')
        ending = tail + b"\r\n"
        return head, _ENDINGS.setdefault(ending, ending), len(head) + len(tail)

    def frame_with_ids(self, index: int, text: str, ids: Sequence[int]) -> bytes:
        """A text frame that also carries the token ids, for clients that asked for them."""
        return self.frame_with(index, text, {"token_ids": list(ids)})

    def frame_with(self, index: int, text: str, extra: dict[str, Any]) -> bytes:
        """A text frame with more in it."""
        return chunk(self._choices([self._choice(index, text) | extra]))

    def opening(self, index: int) -> bytes:
        """The chat protocol's first frame, which only names the role."""
        if not self._chat:
            return b""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return chunk(self._choices([choice]))

    def finish(self, index: int, reason: int) -> bytes:
        choice = self._choice(index, "")
        choice["finish_reason"] = FINISH_NAMES.get(reason, "stop")
        if self._chat:
            choice["delta"] = {}
        return chunk(self._choices([choice]))

    def usage(self, usage: dict[str, Any], extra: dict[str, Any]) -> bytes:
        """The frame behind the last one, without choices."""
        return chunk(self._event({"choices": [], "usage": usage} | extra))

    def _choice(self, index: int, text: str) -> dict[str, Any]:
        if self._chat:
            return {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def _choices(self, choices: list[dict[str, Any]]) -> bytes:
        return self._event({"choices": choices, "usage": None} if self._usage else {"choices": choices})

    def _event(self, rest: dict[str, Any]) -> bytes:
        """What all events of the answer begin with, and the rest of one."""
        return self._start + orjson.dumps(rest)[1:] + b"\n\n"
