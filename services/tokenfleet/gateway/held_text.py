"""Text that waits for a client, in about as many bytes as it has characters.

A token's few characters take up some sixty bytes as a string of their own. Kept piece by piece, what waits
for a slow client would be ten times what its buffer allows.
"""

from __future__ import annotations

MOST_PIECES = 32


def keep(pieces: list[str], text: str) -> None:
    """Adds to the pieces, and joins them when they have become many."""
    pieces.append(text)
    if len(pieces) > MOST_PIECES:
        pieces[:] = ["".join(pieces)]
