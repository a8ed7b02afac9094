"""This process's own lease in a registry, renewed three times in its length.

Losing the store costs a log record: whoever knows this process keeps it. A store that comes back empty is
written to again at the next renewal.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from tokenfleet.runtime.discovery.registry import TIMEOUT_S, Record, RegistryRef
from tokenfleet.runtime.ending import end
from tokenfleet.runtime.telemetry import get_logger

if TYPE_CHECKING:
    import redis.asyncio

RENEWALS = 3  # in the length of a lease

log = get_logger(__name__)


class Registration:
    """`start`, then `leave` when the process begins to drain, and `stop` when it ends."""

    def __init__(self, registry: RegistryRef, target: str, *, zone: str, name: str, lease_s: float) -> None:
        """`target`: host:port by which peers reach this process."""
        self._registry = registry
        self._record = Record(target=target, zone=zone, name=name, since=time.time(), lease_s=lease_s)
        self._key = f"{registry.prefix}{target}:{secrets.token_hex(4)}"
        self._away = False
        self._client: redis.asyncio.Redis | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Raises StartupError when the client library is missing."""
        self._client = self._registry.connect()
        self._task = asyncio.create_task(self._keep(), name=f"lease in {self._registry}")

    async def leave(self) -> None:
        """Nothing new for this process; it is still there."""
        self._record = replace(self._record, terminating=True)
        await self._write(announce=True)

    async def stop(self) -> None:
        """Nobody is here any more: said, not deleted, so that it differs from what a store has lost."""
        if self._task is None or self._client is None:
            return
        await end(self._task)
        self._record = replace(self._record, gone=True)
        await self._write(announce=True)
        await self._client.aclose()

    async def _keep(self) -> None:
        while True:
            await self._write()
            await asyncio.sleep(self._record.lease_s / RENEWALS)

    async def _write(self, *, announce: bool = False) -> None:
        from redis import RedisError

        assert self._client is not None
        lease_ms = round(self._record.lease_s * 1000)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                before = await self._client.set(self._key, self._record.text(), px=lease_ms, get=True)
                if announce or before is None:
                    await self._client.publish(self._registry.prefix, self._key)
        except (RedisError, OSError, TimeoutError) as error:
            if not self._away:
                log.warning(
                    "registry cannot be written",
                    registry=str(self._registry),
                    error=str(error) or type(error).__name__,
                )
            self._away = True
            return
        if self._away or before is None:
            log.info("registered", registry=str(self._registry), target=self._record.target)
        self._away = False
