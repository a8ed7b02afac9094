"""What `tokenfleet chat` does with its options: one question and out, or a conversation."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any

from tokenfleet.cli.chat.answer import STOPPED
from tokenfleet.cli.chat.repl import Repl
from tokenfleet.cli.chat.session import Session, choose_model
from tokenfleet.cli.chat.terminal import Terminal
from tokenfleet.cli.discovery import local_fleet, process_address, reachable
from tokenfleet.cli.errors import CliError
from tokenfleet.cli.gateway_http import GatewayHttp

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """The command's options; None and "" are what was not given."""

    question: str
    url: str
    port: int | None
    api_key: str
    model: str
    system: str
    max_tokens: int | None
    temperature: float | None
    seed: int | None
    as_json: bool

    def sampling(self) -> dict[str, Any]:
        given = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        return {name: value for name, value in given.items() if value is not None}


def run_chat(options: ChatOptions) -> int:
    """Asks, or converses until the person leaves; answers the exit code. Raises CliError."""
    terminal = Terminal()
    question = _question(options, terminal)
    gateway, preferred = _gateway(options)
    model = choose_model(gateway, options.model, preferred)
    session = Session(gateway, model, options.system, options.sampling())
    if question:
        return _ask_once(session, question, terminal, as_json=options.as_json)
    Repl(session, terminal).run()
    return 0


def _gateway(options: ChatOptions) -> tuple[GatewayHttp, str]:
    """The one to ask, and the model that it is best asked for; "" where nothing is known of that."""
    if options.url and options.port:
        raise CliError("--url and --port exclude each other: a URL has a port of its own")
    if options.url:
        return GatewayHttp(options.url, options.api_key), ""
    record = local_fleet(options.port, elsewhere="chat --url http://host:8080")
    gateway = GatewayHttp(reachable(record["http"]), options.api_key)
    if options.model:
        return gateway, ""
    from tokenfleet.cli.loading import first_servable_model

    loader, engines = process_address(record, "model-loader"), set(record["engines"])
    return gateway, asyncio.run(first_servable_model(loader, engines))


def _question(options: ChatOptions, terminal: Terminal) -> str:
    """What to ask; "" to converse. Stdin is read only where no question is given.

    Otherwise a call inside `while read line` would swallow the rest of the loop's input, and one whose stdin
    is a pipe that nobody closes would hang.
    """
    question = options.question
    if question == "-" or (not question and not terminal.interactive):
        question = sys.stdin.read().strip() if sys.stdin is not None else ""
        if not question:
            raise CliError("nothing to ask: stdin was empty; give a question, or call it from a terminal")
    elif not question and options.as_json:
        raise CliError("--json takes one question: give it as an argument, or through a pipe")
    return question


def _ask_once(session: Session, question: str, terminal: Terminal, *, as_json: bool) -> int:
    shown = terminal.show_loading_only if as_json else terminal.show
    try:
        answer = session.ask(question, shown)
    finally:
        terminal.end_answer()
    if as_json:
        print(json.dumps(answer.as_json(), ensure_ascii=False))
    else:
        terminal.note(answer.summary())
    return INTERRUPTED if answer.finish_reason == STOPPED else 0
