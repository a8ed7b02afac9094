"""The console that commands print on: plain text unless a terminal that may have colours is there."""

from __future__ import annotations

import os

from rich.console import Console


def plain_or_coloured(*, stderr: bool = False) -> Console:
    """rich drops colours by itself for NO_COLOR, but keeps bold and dim; here they go too."""
    return Console(
        stderr=stderr, highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto"
    )
