"""The `tokenfleet` command. Imported at every call: what is heavy is imported inside the commands."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `tokenfleet` script."""
    from tokenfleet.cli.app import run

    run()
