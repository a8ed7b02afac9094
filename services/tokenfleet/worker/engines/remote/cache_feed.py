"""What the server's prefix cache holds, followed over its stream of events.

Each rank of the server numbers its batches. A number that is missing, or a stream that the server ends, may
hide anything; so what was believed is dropped, and following begins anew. The server keeps no history, so
what it cached before that stays unknown, and so does all that it caches behind it. Where nothing runs, its
cache is emptied instead: a prefix is computed once more, and from then on the truth is known.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from smg_grpc_proto.generated import common_pb2 as smg

from tokenfleet.core.engine_blocks import CacheListener, EngineBlocks
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.worker.engines.remote.server import Server, in_words

_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 10.0
# A server that accepts the subscription says nothing more until something happens: only a refusal ends it.
_REFUSAL_S = 0.25
_UNSUPPORTED = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)
_DEVICE = (smg.KV_CACHE_TIER_UNSPECIFIED, smg.KV_CACHE_TIER_DEVICE)

log = get_logger(__name__)


class CacheGap(Exception):
    """Events are missing."""


class CacheFeed:
    """Follows until closed, once `open` has found that there is something to follow."""

    def __init__(self, server: Server, block_size: int, listener: CacheListener, *, flush: bool) -> None:
        self._server = server
        self._blocks = EngineBlocks(block_size, listener)
        self._flush = flush
        self._cursors: dict[int, int] = {}
        self._following: asyncio.Task[None] | None = None

    async def open(self) -> bool:
        """Whether the server publishes its cache. Raises AioRpcError when it cannot be asked."""
        try:
            call = await self._subscribe()
        except grpc.aio.AioRpcError as error:
            if error.code() in _UNSUPPORTED:
                return False
            raise
        await self._empty()
        self._following = asyncio.create_task(self._follow(call))
        return True

    def stop(self) -> None:
        """Nothing more is told. What was told stays: the engine's death is reported by others."""
        if self._following is not None:
            self._following.cancel()

    async def _subscribe(self) -> Any:
        """The open stream. Raises AioRpcError when there is none."""
        request = smg.SubscribeKvEventsRequest(start_sequence_number=0)
        call = self._server.stream("SubscribeKvEvents", smg.SubscribeKvEventsRequest, smg.KvEventBatch)(
            request
        )
        await call.initial_metadata()  # come when the server listens to its engine, or with its refusal
        refusal = asyncio.ensure_future(call.code())
        refused, _ = await asyncio.wait((refusal,), timeout=_REFUSAL_S)
        refusal.cancel()
        if refused:
            await call.read()  # raises
        return call

    async def _empty(self) -> None:
        if not self._flush:
            return
        try:
            request = smg.FlushCacheRequest(timeout_s=0)
            answer = await self._server.ask("FlushCache", request, smg.FlushCacheResponse)
            why = "" if answer.success else answer.message
        except grpc.aio.AioRpcError as error:
            why = in_words(error)
        if why:
            log.info("the engine server's cache is not emptied: what it holds stays unknown", why=why)

    async def _follow(self, call: Any) -> None:
        failures = 0
        while True:
            try:
                while (batch := await call.read()) is not grpc.aio.EOF:
                    failures = 0
                    self.take(batch)
                why = "the server ended the stream"
            except CacheGap as error:
                why = str(error)
            except grpc.aio.AioRpcError as error:
                why = in_words(error)
            call.cancel()
            self._blocks.cleared()
            self._cursors.clear()
            log.warning("cache events broke off", why=why)
            call = await self._again(failures)
            failures += 1

    async def _again(self, failures: int) -> Any:
        while True:
            await asyncio.sleep(min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2**failures))
            failures += 1
            try:
                call = await self._subscribe()
            except grpc.aio.AioRpcError as error:
                log.info("no cache events", why=in_words(error))
            else:
                await self._empty()
                return call

    def take(self, batch: smg.KvEventBatch) -> None:
        """Raises CacheGap."""
        if batch.HasField("load") and batch.load.load_only:
            return
        if self._is_new(batch):
            for event in batch.events:
                self._apply(event)

    def _is_new(self, batch: smg.KvEventBatch) -> bool:
        rank, number = batch.dp_rank, batch.sequence_number
        seen = self._cursors.get(rank)
        restarted = batch.HasField("snapshot") and batch.snapshot.index == 0
        if seen is not None and not restarted:
            if number <= seen:
                return False
            if number > seen + 1:
                raise CacheGap(f"batches {seen + 1} to {number - 1} of rank {rank} are missing")
        self._cursors[rank] = number
        return True

    def _apply(self, event: smg.KvCacheEvent) -> None:
        what = event.WhichOneof("data")
        if what == "stored":
            if _is_plain(event.stored):
                self._store(event.stored)
        elif what == "removed":
            if _is_here(event.removed):
                self._blocks.removed(event.removed.block_hashes)
        elif what == "cleared":
            self._blocks.cleared()

    def _store(self, stored: smg.KvBlocksStored) -> None:
        parent = stored.parent_block_hash if stored.HasField("parent_block_hash") else None
        for block in stored.blocks:
            if block.HasField("lora_id") or block.extra_keys or block.cache_level:
                return
            self._blocks.stored(block.block_hash, parent, block.token_ids)
            parent = block.block_hash


def _is_plain(stored: smg.KvBlocksStored) -> bool:
    """Ids alone name these blocks: no adapter, no salt."""
    return _is_here(stored) and not stored.lora_name and not stored.cache_salt


def _is_here(event: smg.KvBlocksStored | smg.KvBlocksRemoved) -> bool:
    """In the device's own memory: what is further away has to be fetched first."""
    return event.tier in _DEVICE and event.locality != smg.KV_CACHE_LOCALITY_REMOTE
