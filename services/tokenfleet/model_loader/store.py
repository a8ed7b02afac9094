"""Keeps the history in a store that speaks the Redis protocol, at a distance from everything that matters.

Reads once, writes what changed every few seconds, waits for the store never longer than its timeout, and only
in a task of its own: a store that is away costs a log record, and its return is used.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Any, Protocol

from tokenfleet.model_loader.history import History, ModelHistory
from tokenfleet.runtime.ending import end
from tokenfleet.runtime.telemetry import get_logger

MODELS_KEY = "tokenfleet:loader:models"
CATALOG_KEY = "tokenfleet:loader:catalog"
ENTRIES_KEY = "tokenfleet:loader:entries"
WRITE_EVERY_S = 2.0

log = get_logger(__name__)


class StoreError(Exception):
    """The store did not do it; the message says why."""


class Store(Protocol):
    """Hashes. All methods raise StoreError."""

    async def read(self, key: str) -> dict[str, str]: ...

    async def write(self, key: str, fields: dict[str, str]) -> None: ...

    async def close(self) -> None: ...


class RedisStore:
    """Redis, Valkey, or what else speaks their protocol."""

    def __init__(self, url: str, timeout_s: float) -> None:
        # imported here, because a fleet without a store does without it
        import redis.asyncio
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self._errors = (redis.RedisError, OSError, TimeoutError)
        self._timeout_s = timeout_s
        self._client = redis.asyncio.from_url(
            url,
            decode_responses=True,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )

    async def read(self, key: str) -> dict[str, str]:
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._client.hgetall(key)
        except self._errors as error:
            raise StoreError(str(error) or type(error).__name__) from error
        return {str(field): str(value) for field, value in found.items()}

    async def write(self, key: str, fields: dict[str, str]) -> None:
        pairs: dict[Any, Any] = {**fields}  # the client's own types are invariant
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.hset(key, mapping=pairs)
        except self._errors as error:
            raise StoreError(str(error) or type(error).__name__) from error

    async def close(self) -> None:
        await self._client.aclose()


class HistoryKeeper:
    """Carries the history to the store and back."""

    def __init__(self, store: Store, history: History) -> None:
        self._store = store
        self._history = history
        self._recalled = False
        self._away = False
        self._exchanging = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """One attempt to read, bounded by the store's timeout; then goes on in the background."""
        await self.exchange()
        self._task = asyncio.create_task(self._run(), name="history")

    async def stop(self) -> None:
        """Writes what is left, if the store takes it."""
        if self._task is not None:
            await end(self._task)
        await self.exchange()
        await self._store.close()

    async def exchange(self) -> None:
        """Reads what was not read yet, then writes what changed; a failure is logged once and tried again."""
        async with self._exchanging:
            await self._exchange()

    async def _exchange(self) -> None:
        try:
            if not self._recalled:
                await self._recall()
            await self._write()
        except StoreError as error:
            if not self._away:
                log.warning("store away: history is kept in this process only", error=str(error))
            self._away = True
            return
        if self._away:
            log.info("store is back")
        self._away = False

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            await self.exchange()

    async def _recall(self) -> None:
        models = await self._store.read(MODELS_KEY)
        catalog = await self._store.read(CATALOG_KEY)
        entries = await self._store.read(ENTRIES_KEY)
        known = {name: history for name, text in models.items() if (history := _parse(name, text))}
        self._recalled = True
        self._history.recall(known, catalog.get("digest", ""), int(catalog.get("revision", "0")), entries)

    async def _write(self) -> None:
        history = self._history
        names, history.changed = history.changed, set()
        entries, history.entries_changed = history.entries_changed, set()
        try:
            if entries:
                await self._store.write(ENTRIES_KEY, {name: history.entries[name] for name in entries})
            if names:
                fields = {name: json.dumps(asdict(history.of(name))) for name in names}
                await self._store.write(MODELS_KEY, fields)
            if history.catalog_changed:
                revision = str(history.catalog_revision)
                await self._store.write(CATALOG_KEY, {"digest": history.catalog_digest, "revision": revision})
                history.catalog_changed = False
        except StoreError:
            history.changed |= names
            history.entries_changed |= entries
            raise


def _parse(name: str, text: str) -> ModelHistory | None:
    try:
        return ModelHistory(**json.loads(text))
    except (ValueError, TypeError) as error:
        log.warning("stored history is not understood and starts afresh", model=name, error=str(error))
        return None
