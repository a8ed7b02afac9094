"""An error that the command line shows as it is."""

from __future__ import annotations


class CliError(Exception):
    """What went wrong and what to do about it, for the person at the terminal."""
