"""A conversation: what was said so far, by whom, and to which model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tokenfleet.cli.chat.answer import Answer, receive
from tokenfleet.cli.errors import CliError
from tokenfleet.cli.gateway_http import Event, GatewayHttp


@dataclass
class Session:
    """`options` are sent with each question, as OpenAI's API names them."""

    gateway: GatewayHttp
    model: str
    system: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str, show: Callable[[Event], None]) -> Answer:
        """Sends the conversation with this question; keeps both it and its answer. Raises GatewayError.

        An answer that was stopped is kept as far as it was seen; a question that got nothing is forgotten, so
        that it can be asked again.
        """
        turns = [*self.turns, {"role": "user", "content": question}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {
            "model": self.model,
            "messages": system + turns,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            **self.options,
        }
        answer = receive(self.gateway, body, show)
        if answer.text:
            self.turns = [*turns, {"role": "assistant", "content": answer.text}]
        return answer


def choose_model(gateway: GatewayHttp, wanted: str, preferred: str = "") -> str:
    """The model by that name; "" is the preferred, else the first that the fleet serves. Raises CliError."""
    names = [str(model.get("id")) for model in gateway.models()]
    if not names:
        raise CliError(f"{gateway.base} serves no model")
    if not wanted:
        return preferred if preferred in names else names[0]
    if wanted not in names:
        raise CliError(f"no model is called {wanted!r}; there are: {', '.join(names)}")
    return wanted
