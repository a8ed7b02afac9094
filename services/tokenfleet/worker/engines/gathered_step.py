"""A step put together from single words: what arrives in one turn of the event loop leaves together.

For engines whose servers report one sequence at a time. Each word passed on alone would make the worker look
at all of its sequences and send a message for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from tokenfleet.worker.engines.base import Delta, Finished, Logprobs, Sink


class GatheredStep:
    """On the event loop's thread."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._due: asyncio.Handle | None = None
        self._deltas: list[Delta] = []
        self._finished: list[Finished] = []
        self._logprobs: list[Logprobs] = []

    def tokens(self, key: int, ids: Sequence[int]) -> None:
        self._deltas.append((key, ids))
        self._soon()

    def logprobs(self, records: Iterable[Logprobs]) -> None:
        """Of tokens in the same turn."""
        self._logprobs += records

    def ended(self, record: Finished) -> None:
        self._finished.append(record)
        self._soon()

    def flush(self) -> None:
        """Now: before something that must not overtake it."""
        if self._due is None:
            return
        self._due.cancel()
        self._due = None
        deltas, finished, logprobs = self._deltas, self._finished, self._logprobs
        self._deltas, self._finished, self._logprobs = [], [], []
        self._sink.step(deltas, finished, logprobs)

    def _soon(self) -> None:
        if self._due is None:
            self._due = self._loop.call_soon(self.flush)
