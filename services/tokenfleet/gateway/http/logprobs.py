"""Log probabilities in OpenAI's shapes: entries with alternatives for chat, parallel lists otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenfleet.v1 import worker_pb2

# What OpenAI says for a token that is out of the question; JSON has no infinity.
LOWEST = -9999.0


class Logprobs:
    """Collects entries by answer until they are taken."""

    def __init__(self, *, chat: bool, alternatives: int) -> None:
        self._chat = chat
        self._alternatives = alternatives
        self._entries: dict[int, list[worker_pb2.TokenLogprobs]] = {}
        self._offsets: dict[int, int] = {}

    def add(self, index: int, entry: worker_pb2.TokenLogprobs) -> None:
        self._entries.setdefault(index, []).append(entry)

    def take(self, index: int) -> dict[str, Any] | None:
        """What came since the last time; None when nothing did."""
        entries = self._entries.pop(index, None)
        if entries is None:
            return None
        if self._chat:
            return {"content": [self._chat_entry(entry) for entry in entries], "refusal": None}
        return self._lists(index, entries)

    def _chat_entry(self, entry: worker_pb2.TokenLogprobs) -> dict[str, Any]:
        top = entry.top[: self._alternatives]
        return _token(entry) | {"top_logprobs": [_token(alternative) for alternative in top]}

    def _lists(self, index: int, entries: Sequence[worker_pb2.TokenLogprobs]) -> dict[str, Any]:
        offset = self._offsets.get(index, 0)
        offsets = []
        for entry in entries:
            offsets.append(offset)
            offset += len(entry.text)
        self._offsets[index] = offset
        return {
            "tokens": [entry.text for entry in entries],
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": [
                {one.text: _finite(one.logprob) for one in entry.top[: self._alternatives]}
                for entry in entries
            ],
            "text_offset": offsets,
        }


def _token(entry: worker_pb2.TokenLogprobs | worker_pb2.TokenLogprobs.Alternative) -> dict[str, Any]:
    return {"token": entry.text, "logprob": _finite(entry.logprob), "bytes": list(entry.text.encode())}


def _finite(logprob: float) -> float:
    return logprob if logprob > LOWEST else LOWEST
