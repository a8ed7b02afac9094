"""How busy the server is: the worker's own books, and what the server says of everybody's requests.

The own books are exact and now; the server's word is a moment old but knows what others ask of it, and how
many sequences really run. Its word counts as long as something was running here when it was asked, or nothing
is now: so a server that has just become idle is not held for busy.
"""

from __future__ import annotations

from collections.abc import Collection

from tokenfleet.worker.engines.base import EngineLoad
from tokenfleet.worker.engines.remote.dialects.base import ServerLoad
from tokenfleet.worker.engines.remote.sequence import RemoteSequence


class LoadBook:
    """Combines both; belongs to the event loop's thread."""

    def __init__(self, block_size: int, kv_blocks_total: int) -> None:
        self._block_size = block_size
        self._kv_blocks_total = kv_blocks_total
        self._said: ServerLoad | None = None
        self._others = 0

    def server_said(self, said: ServerLoad, own: int) -> None:
        """`own` sequences were on it when it was asked."""
        self._said = said
        self._others = max(0, said.running + said.waiting - own)

    def idle(self) -> None:
        """The last own sequence is gone: what the server said included it."""
        self._said = None
        self._others = 0

    def now(self, sequences: Collection[RemoteSequence]) -> EngineLoad:
        said = self._said
        own = len(sequences)
        silent = [one for one in sequences if not one.first_token_at]
        context = sum(one.context_tokens for one in sequences)
        waiting = min(len(silent), said.waiting) if said is not None else 0
        used = -(-context // self._block_size)
        if said is not None:
            used = max(used, round(said.kv_usage * self._kv_blocks_total))
        return EngineLoad(
            running=own - waiting + self._others,
            waiting=waiting,
            kv_blocks_used=used,
            queued_prefill_tokens=sum(len(one.generation.token_ids) for one in silent),
            context_tokens=context,
        )
