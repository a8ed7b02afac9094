"""What waits to go to one gateway: the deltas of an engine step as one message.

A message costs some 30 µs wherever it goes through, a token in it less than one. So all that a step has for a
gateway travels together, and where a gateway has only a few sequences here, a few milliseconds of steps do,
unless something in them must not wait: a first token, or an end. A step that carries every decoding sequence
leaves at once, because there is nothing to wait for.

While the link is not writable, deltas of one sequence merge: what waits grows by tokens, never by messages,
and a gateway that takes nothing for `stuck_s` is disconnected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import chain

from tokenfleet.runtime.links import Link
from tokenfleet.v1 import worker_pb2


class Outbox:
    """One gateway's deltas, on the event loop's thread."""

    def __init__(
        self,
        link: Link[worker_pb2.ServeResponse],
        *,
        coalesce_s: float,
        stuck_s: float,
        stuck: Callable[[], None],
    ) -> None:
        self._link = link
        self._coalesce_s = coalesce_s
        self._stuck_s = stuck_s
        self._stuck = stuck
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._closed = False
        self._index: dict[int, int] = {}  # slot to its place in the arrays
        self._slots: list[int] = []
        self._attempts: list[int] = []
        self._ids: list[Sequence[int]] = []
        self._texts: list[str] = []
        self._terminals: list[worker_pb2.Terminal] = []
        self._logprobs: list[worker_pb2.TokenLogprobs] = []
        self.decoding = 0  # sequences of this gateway that had their first token
        self.urgent = False
        self.touched = False  # has something new since the last `step_done`

    def add(self, slot: int, attempt: int, ids: Sequence[int], text: str) -> None:
        """A delta; `step_done` sends it, or decides to wait."""
        place = self._index.get(slot)
        if place is None:
            self._index[slot] = len(self._slots)
            self._slots.append(slot)
            self._attempts.append(attempt)
            self._ids.append(ids)
            self._texts.append(text)
        else:
            self._ids[place] = [*self._ids[place], *ids]
            self._texts[place] += text

    def add_logprobs(self, logprobs: worker_pb2.TokenLogprobs) -> None:
        self._logprobs.append(logprobs)

    def end(self, terminal: worker_pb2.Terminal) -> None:
        """The last word about a slot and attempt; a message lists it behind all deltas."""
        self._terminals.append(terminal)
        self.urgent = True

    def step_done(self) -> None:
        """Sends now, or within the coalescing time."""
        self.touched = False
        if self.urgent or not self._coalesce_s or len(self._slots) >= self.decoding:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._coalesce_s, self.flush)

    def flush(self) -> None:
        """Sends everything, unless the link is not writable: then it goes on merging."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._closed or not (self._slots or self._terminals):
            return
        if not self._link.writable:
            if self._patience is None:
                self._patience = self._loop.call_later(self._stuck_s, self._stuck)
            return
        self._link.send(self._message())
        self._index.clear()
        for queued in (self._slots, self._attempts, self._ids, self._texts, self._terminals, self._logprobs):
            queued.clear()
        self.urgent = False

    def writable_again(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self.flush()

    def close(self) -> None:
        """Forgets everything; nothing is sent from now on."""
        self._closed = True
        for timer in (self._timer, self._patience):
            if timer is not None:
                timer.cancel()

    def _message(self) -> worker_pb2.ServeResponse:
        message = worker_pb2.ServeResponse()
        step = message.step
        step.slots.extend(self._slots)
        step.attempts.extend(self._attempts)
        step.token_counts.extend(map(len, self._ids))
        step.texts.extend(self._texts)
        step.token_ids.extend(chain.from_iterable(self._ids))
        if self._terminals:
            step.terminals.extend(self._terminals)
        if self._logprobs:
            step.logprobs.extend(self._logprobs)
        return message
