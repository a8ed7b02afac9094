"""One answer as it is received, timed where the person sits.

Times are the client's: they hold the network and all of the fleet, which is what the person waits for. Speed
is measured between tokens, so that a long prompt or a cold model shows in the TTFT and not in the tokens/s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenfleet.cli.gateway_http import Event, GatewayHttp

STOPPED = "stopped"


@dataclass(kw_only=True)
class Answer:
    """What has arrived. `finish_reason` is the server's, or `stopped` when the person ended it."""

    model: str
    text: str = ""
    finish_reason: str = ""
    answer_id: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 0  # how many worked on it, one after the other; 0: the server does not tell
    ttft_s: float | None = None  # None: no text came
    between_s: float = 0.0  # from the first text to the latest
    streamed_tokens: int = 0
    first_tokens: int = 0  # in the message that brought the first text
    fallback: str = ""  # why another model than the wanted one answered, for people

    @property
    def tokens(self) -> int:
        """The server's count where it gave one; a stopped answer has only what was seen."""
        return int(self.usage.get("completion_tokens") or self.streamed_tokens)

    @property
    def tokens_per_s(self) -> float | None:
        """After the first; None when there were too few to say."""
        after_first = self.tokens - self.first_tokens
        return after_first / self.between_s if after_first > 0 and self.between_s > 0 else None

    def add(self, event: Event, after_s: float) -> None:
        """Takes what arrived `after_s` seconds after the question was sent."""
        self.answer_id = event.answer_id or self.answer_id
        self.model = event.model or self.model
        self.fallback = event.fallback or self.fallback
        self.finish_reason = event.finish_reason or self.finish_reason
        self.usage = event.usage or self.usage
        self.workers = event.workers or self.workers
        # a server that sends no ids sends, as a rule, a message a token
        tokens = event.tokens or bool(event.text)
        self.streamed_tokens += tokens
        if not event.text:
            return
        self.text += event.text
        if self.ttft_s is None:
            self.ttft_s, self.first_tokens = after_s, self.streamed_tokens
        self.between_s = after_s - self.ttft_s

    def summary(self) -> str:
        """One line for people."""
        speed, parts = self.tokens_per_s, []
        if self.finish_reason == STOPPED:
            parts.append("stopped")
        parts.append("no text" if self.ttft_s is None else f"TTFT {_seconds(self.ttft_s)}")
        parts.append(f"{self.tokens} token{'s' if self.tokens != 1 else ''}")
        if speed is not None:
            parts.append(f"{speed:.1f} tokens/s")
        if self.finish_reason == "length":
            parts.append("cut at the token limit")
        if self.fallback:
            parts.append(f"answered by {self.model} instead")
        if self.workers > 1:
            parts.append(f"survived {self.workers - 1} lost worker{'s' if self.workers > 2 else ''}")
        return " · ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """For programs; seconds, tokens per second, and null where there was too little to measure."""
        return {
            "model": self.model,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "ttft_s": self.ttft_s,
            "tokens": self.tokens,
            "tokens_per_s": self.tokens_per_s,
            "usage": dict(self.usage),
            "id": self.answer_id,
        }


def receive(gateway: GatewayHttp, body: Mapping[str, Any], show: Callable[[Event], None]) -> Answer:
    """Asks, and shows what arrives. Ctrl-C cancels the request at the gateway. Raises GatewayError."""
    answer = Answer(model=str(body["model"]))
    began = time.perf_counter()
    try:
        with gateway.chat(body) as events:
            for event in events:
                answer.add(event, time.perf_counter() - began)
                show(event)
    except KeyboardInterrupt:
        answer.finish_reason = STOPPED
    return answer


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"
