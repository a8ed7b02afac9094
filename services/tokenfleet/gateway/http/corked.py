"""A transport that can hold its writes back for a moment and send them as one.

uvicorn writes a response's head, each piece of its body and its end separately, and every write is a system
call that wakes the client. Corked, a whole JSON response or the opening of a stream is one.
"""

from __future__ import annotations

import asyncio
from typing import Any


class CorkedTransport:
    """Stands in for `raw`; what is written inside a `with` of it leaves at the end, in one piece."""

    __slots__ = ("_held", "raw")

    def __init__(self, raw: asyncio.Transport) -> None:
        self.raw = raw
        self._held: list[bytes] | None = None

    def write(self, data: bytes) -> None:
        if self._held is not None:
            self._held.append(data)
        elif not self.raw.is_closing():
            self.raw.write(data)

    def close(self) -> None:
        self._release()
        self.raw.close()

    def __enter__(self) -> None:
        self._held = []

    def __exit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        held, self._held = self._held, None
        if held and not self.raw.is_closing():
            self.raw.write(b"".join(held))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)
