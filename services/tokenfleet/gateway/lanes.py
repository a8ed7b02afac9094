"""The short way of a token: from the step handler to the client's socket without asking anybody.

Nearly every token of a fleet is plain text for a client that keeps up, and its frame differs from the one
before only in the text. So whoever answers such a client lays the rest down once and opens a lane, and the
step handler builds the frame without a call. A lane is shut while its client does not read, and wherever a
token needs more than its text.
"""

from __future__ import annotations

import asyncio

import orjson

# What stands before the text, what stands behind it and ends the chunk, and the size of both in the chunk.
Mould = tuple[bytes, bytes, int]
Lane = tuple[asyncio.Transport, bytes, bytes, int]

dumps = orjson.dumps
MOST_SHORT = 4096
# The first line of an HTTP chunk, by the chunk's size.
SIZE_LINES = [b"%x\r\n" % size for size in range(MOST_SHORT)]


def size_line(size: int) -> bytes:
    return SIZE_LINES[size] if size < MOST_SHORT else b"%x\r\n" % size


def cast(mould: Mould, text: str) -> bytes:
    """The frame of a text as an HTTP chunk."""
    head, tail, around = mould
    payload = dumps(text)
    return b"".join((size_line(around + len(payload)), head, payload, tail))
