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

    def __init__(self, block_size: int, kv_blocks_total: int, max_sequences: int) -> None:
        self._block_size = block_size
        self._kv_blocks_total = kv_blocks_total
        self._max_sequences = max_sequences
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
        """Whoever has no token yet may be waiting; who came last waits first."""
        silent = [one for one in sequences if not one.first_token_at]
        waiting = self._waiting(len(sequences), len(silent))
        behind = set(silent[len(silent) - waiting :])
        contexts = [one.context_tokens for one in sequences if one not in behind]
        used = sum(-(-tokens // self._block_size) for tokens in contexts)
        if self._said is not None:
            used = max(used, round(self._said.kv_usage * self._kv_blocks_total))
        return EngineLoad(
            running=len(contexts) + self._others,
            waiting=waiting,
            kv_blocks_used=used,
            queued_prefill_tokens=sum(len(one.generation.token_ids) for one in silent),
            context_tokens=sum(contexts),
        )

    def _waiting(self, own: int, silent: int) -> int:
        told = self._said.waiting if self._said is not None else 0
        return min(silent, max(told, own - self._max_sequences))
