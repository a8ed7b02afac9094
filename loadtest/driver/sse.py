"""Counts the events of an OpenAI stream without parsing those that only carry text.

`"content":"` cannot occur inside a JSON string, where its quotes would be escaped, and a blank line cannot
either: so both can be counted in the raw bytes. Events without text (the role, the end, usage, errors,
`[DONE]`) are kept and parsed when the stream is over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

CHAT_MARKER = b'"content":"'
COMPLETION_MARKER = b'"text":"'
# U+FFFD, as it is or escaped
_REPLACEMENTS = ("\ufffd".encode(), b"\\ufffd")


@dataclass(slots=True)
class StreamEnd:
    """What the frames without text said."""

    done: bool = False
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    error: str = ""


class EventCounter:
    """Fed with body bytes split anywhere; counts whole events and those among them that carry text."""

    __slots__ = ("_empty", "_keep_all", "_kept", "_marker", "_partial", "begins_broken", "content", "events")

    def __init__(self, marker: bytes = CHAT_MARKER, *, keep_all: bool = False) -> None:
        self._marker = marker
        self._empty = marker + b'"'
        self._keep_all = keep_all
        self._kept: list[bytes] = []
        self._partial = b""
        self.events = 0
        self.content = 0
        # the first token was a part of a character: its text could only come with the second token's
        self.begins_broken = False

    def feed(self, payload: bytes) -> None:
        if self._partial:
            payload = self._partial + payload
            self._partial = b""
        if payload[-2:] != b"\n\n":
            cut = payload.rfind(b"\n\n")
            if cut < 0:
                self._partial = payload
                return
            self._partial = payload[cut + 2 :]
            payload = payload[: cut + 2]
        events = payload.count(b"\n\n")
        content = payload.count(self._marker) - payload.count(self._empty)
        self.events += events
        if content and not self.content:
            self.begins_broken = self._is_broken(payload)
        self.content += content
        if content != events or self._keep_all:
            self._kept.append(payload)

    @property
    def unfinished(self) -> bytes:
        """What came behind the last whole event."""
        return self._partial

    def end(self) -> StreamEnd:
        """Raises ValueError when a frame is no JSON or the stream stops inside an event."""
        if self._partial:
            raise ValueError(f"the stream ends inside an event: {self._partial[:80]!r}")
        end = StreamEnd()
        for data in self._data():
            if end.done:
                raise ValueError(f"an event behind [DONE]: {data[:80]!r}")
            if data == b"[DONE]":
                end.done = True
            else:
                _note(end, json.loads(data))
        return end

    def texts(self) -> list[str]:
        """The text of every content frame; only with `keep_all`."""
        assert self._keep_all, "frames with text were not kept"
        key = "delta" if self._marker == CHAT_MARKER else "text"
        found = [_text(json.loads(data), key) for data in self._data() if data != b"[DONE]"]
        return [text for text in found if text]

    def _is_broken(self, payload: bytes) -> bool:
        start = 0
        while True:
            start = payload.index(self._marker, start) + len(self._marker)
            if payload[start : start + 1] != b'"':
                return payload.startswith(_REPLACEMENTS, start)

    def _data(self) -> list[bytes]:
        lines = b"".join(self._kept).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


def _text(event: dict[str, Any], key: str) -> str:
    for choice in event.get("choices") or ():
        value = choice[key]
        return str((value.get("content") if isinstance(value, dict) else value) or "")
    return ""


def _note(end: StreamEnd, event: dict[str, Any]) -> None:
    if error := event.get("error"):
        end.error = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    for choice in event.get("choices") or ():
        end.finish_reason = choice.get("finish_reason") or end.finish_reason
    if usage := event.get("usage"):
        end.prompt_tokens = usage["prompt_tokens"]
        end.completion_tokens = usage["completion_tokens"]
