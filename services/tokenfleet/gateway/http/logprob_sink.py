"""A stream whose frames carry log probabilities: rare, and out of the way of those that have none."""

from __future__ import annotations

from typing import Any

from tokenfleet.gateway.http.logprobs import Logprobs
from tokenfleet.gateway.http.sinks import StreamSink
from tokenfleet.v1 import worker_pb2

# About what an entry, or an alternative in it, takes up while it waits.
ENTRY_BYTES = 64


class LogprobStreamSink(StreamSink):
    """Each frame brings the log probabilities of its tokens."""

    plain = False

    __slots__ = ("_logprobs",)

    def __init__(self, *arguments: Any, logprobs: Logprobs, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._logprobs = logprobs

    def logprobs(self, index: int, entry: worker_pb2.TokenLogprobs) -> None:
        self._logprobs.add(index, entry)
        self._held_chars += ENTRY_BYTES * (1 + len(entry.top))

    def delta(self, index: int, text: str, ids: list[int]) -> None:
        self._hold(index, text, ids)
        if self._started and not self._flow.write_paused:
            self.flush()

    def flush(self) -> None:
        if not self._started:
            return
        held, self._held, self._held_chars = self._held, {}, 0
        for index, (texts, ids) in held.items():
            extra: dict[str, Any] = {"logprobs": self._logprobs.take(index)}
            if self._with_ids:
                extra["token_ids"] = ids
            text = "".join(texts)
            if text or self._with_ids or extra["logprobs"]:
                self._write(self._style.frame_with(index, text, extra))
