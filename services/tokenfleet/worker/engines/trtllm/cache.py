"""TensorRT-LLM's KV-cache events as canonical blocks.

Its events are numbered, and those that found no room in its buffer are missing: then nothing is known any
more. A model with several attention windows has a cache for each; a prefix is cached while that of the widest
window has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenfleet.core.engine_blocks import CacheListener, EngineBlocks


class CacheEvents:
    """Follows the events of all ranks."""

    def __init__(self, block_size: int, listener: CacheListener) -> None:
        self._blocks = EngineBlocks(block_size, listener)
        self._last: dict[int, int] = {}  # number of the last event, by rank
        self._window = 0

    def take(self, event: Mapping[str, Any]) -> None:
        rank, number = event.get("attention_dp_rank") or 0, event["event_id"]
        if number != self._last.get(rank, number - 1) + 1:
            self._blocks.cleared()
        self._last[rank] = number
        window = event["window_size"] or 0
        if window > self._window:
            self._window = window
            self._blocks.cleared()
        if window < self._window:
            return
        data = event["data"]
        if data["type"] == "stored":
            self._store(data)
        elif data["type"] == "removed":
            self._blocks.removed(data["block_hashes"])

    def _store(self, data: Mapping[str, Any]) -> None:
        parent = data["parent_hash"] or None
        for block in data["blocks"]:
            tokens = block["tokens"]
            if any(token["token_extra_id"] for token in tokens):
                return  # not by ids alone
            self._blocks.stored(block["block_hash"], parent, [token["token_id"] for token in tokens])
            parent = block["block_hash"]
