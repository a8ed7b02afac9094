"""Why a process that was run for one task failed, in one line."""

from __future__ import annotations


def last_words(log: str, returncode: int) -> str:
    """The last line of its log that says anything, which of a traceback is the error; else its exit code."""
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {returncode}"
