"""The conversation at a terminal: lines are questions, lines that begin with a slash are commands."""

from __future__ import annotations

from tokenfleet.cli.chat.answer import STOPPED
from tokenfleet.cli.chat.session import Session, choose_model
from tokenfleet.cli.chat.terminal import Terminal, enable_line_editing, typed_so_far
from tokenfleet.cli.errors import CliError

PROMPT = "> "
HELP = """\
/model           the models there are; /model NAME goes on with another
/system TEXT     what the model shall be; /system alone shows it, /system off removes it
/reset           forget the conversation; model and system prompt stay
/help            this
/quit            leave; Ctrl-D does too
Ctrl-C stops a running answer; on an empty line it leaves.
Two slashes at the beginning of a line send it with one."""


class Repl:
    """Runs until the person leaves."""

    def __init__(self, session: Session, terminal: Terminal) -> None:
        self._session = session
        self._terminal = terminal
        self._commands = {
            "help": lambda _: self._say(HELP),
            "model": self._model,
            "system": self._system,
            "reset": self._reset,
        }

    def run(self) -> None:
        enable_line_editing()
        self._say(f"{self._session.model} at {self._session.gateway.base}")
        self._say("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        while (line := self._next_line()) is not None:
            try:
                if not self._take(line.strip()):
                    return
            except CliError as error:
                self._terminal.end_answer()
                self._terminal.note(str(error), style="red")
            except KeyboardInterrupt:
                # it came between two answers: there is nothing to stop
                self._terminal.end_answer()

    def _next_line(self) -> str | None:
        while True:
            try:
                return self._terminal.ask(PROMPT)
            except EOFError:
                self._say("")
                return None
            except KeyboardInterrupt:
                self._say("")
                if not typed_so_far():
                    return None

    def _take(self, line: str) -> bool:
        """Does what the line says; false when it says to leave. Raises CliError."""
        if not line:
            return True
        if not line.startswith("/") or line.startswith("//"):
            self._ask(line.removeprefix("/") if line.startswith("//") else line)
            return True
        name, _, argument = line[1:].partition(" ")
        if name in ("quit", "exit", "q"):
            return False
        if name not in self._commands:
            raise CliError(f"there is no command /{name}; /help lists them")
        self._commands[name](argument.strip())
        return True

    def _ask(self, question: str) -> None:
        answer = self._session.ask(question, self._terminal.show)
        self._terminal.end_answer()
        if not answer.text and answer.finish_reason == STOPPED:
            self._say("stopped before the first token; the question is forgotten")
        else:
            self._say(answer.summary())

    def _model(self, name: str) -> None:
        if name:
            self._session.model = choose_model(self._session.gateway, name)
            self._say(f"{name} answers from here on")
            return
        for model in self._session.gateway.models():
            mark = "*" if model.get("id") == self._session.model else " "
            self._say(f"{mark} {model.get('id')}")

    def _system(self, text: str) -> None:
        if text:
            self._session.system = "" if text == "off" else text
        self._say(f"system prompt: {self._session.system or 'none'}")

    def _reset(self, _: str) -> None:
        self._session.turns = []
        self._say("the conversation is forgotten")

    def _say(self, text: str) -> None:
        self._terminal.note(text)
