"""Where a chat is shown: answers on stdout, everything about them on stderr.

So `tokenfleet chat "…" > answer.txt` keeps the answer alone. Without a terminal, or with NO_COLOR set,
nothing but plain text is written.
"""

from __future__ import annotations

import contextlib
import io
import sys
import unicodedata

from tokenfleet.cli.console import plain_or_coloured
from tokenfleet.cli.gateway_http import Event
from tokenfleet.cli.load_bar import LoadBar


class Terminal:
    """The person's, or the pipes that stand for it."""

    def __init__(self) -> None:
        _tolerate(sys.stdin, sys.stdout, sys.stderr)
        self.interactive = sys.stdin is not None and sys.stdin.isatty()
        self._notes = plain_or_coloured(stderr=True)
        self._raw = not sys.stdout.isatty()
        self._bar = LoadBar(self._notes)
        self._in_line = False

    def note(self, text: str, style: str = "dim") -> None:
        """A line about the conversation; never wrapped, never taken for markup."""
        self._notes.print(text, style=style, markup=False, soft_wrap=True)

    def show(self, event: Event) -> None:
        """A piece of the answer, or how far its model has been loaded."""
        if event.loading:
            self._bar.show(event.loading)
        elif event.fallback:
            self._bar.end()
            self.note(event.fallback, style="yellow")
        elif event.text:
            self._bar.end()
            text = event.text if self._raw else printable(event.text)
            sys.stdout.write(text)
            sys.stdout.flush()
            self._in_line = not text.endswith("\n")

    def show_loading_only(self, event: Event) -> None:
        """For answers that are wanted in one piece."""
        if event.loading:
            self._bar.show(event.loading)
        elif event.text:
            self._bar.end()

    def end_answer(self) -> None:
        self._bar.end()
        if self._in_line:
            print(flush=True)
        self._in_line = False

    def ask(self, prompt: str) -> str:
        """The next line that the person enters. Raises EOFError, KeyboardInterrupt."""
        if not self._raw:
            return input(prompt)
        self._notes.print(prompt, end="", markup=False)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line


def _tolerate(*streams: object) -> None:
    """What an encoding lacks becomes a question mark instead of an error."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def enable_line_editing() -> None:
    """Arrow keys and history for `input`, where the platform has them; nothing is kept on disk."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


def typed_so_far() -> str:
    """What stood in the line that Ctrl-C interrupted."""
    readline = sys.modules.get("readline")
    return str(readline.get_line_buffer()) if readline is not None else ""


def printable(text: str) -> str:
    """Without control characters: a model's words must not steer a terminal."""
    return "".join(each for each in text if each in "\n\t" or unicodedata.category(each) != "Cc")
