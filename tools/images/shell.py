"""Running the builders' commands, with an error that says which one failed and what it said."""

from __future__ import annotations

import subprocess

_SHOWN_LINES = 25


class CommandFailed(Exception):
    """A command ended badly; the message has its last lines."""


def run(*command: str, quiet: bool = False) -> str:
    """The command's output, stripped; with `quiet` none. Raises CommandFailed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CommandFailed(f"{command[0]} is not installed") from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-_SHOWN_LINES:])
        raise CommandFailed(f"{' '.join(command[:3])} … ended with {done.returncode}:\n{said}")
    return "" if quiet else done.stdout.strip()
