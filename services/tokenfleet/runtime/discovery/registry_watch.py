"""One registry's peers, read again and again, and at once when somebody announces news.

An announcement may get lost, so it only hurries the next reading. Who is missing from a reading is not gone:
the store may have lost it. A peer leaves when it said so itself, or when its lease has run out by this
process's own clock while the store was there to be asked. So a store that is away, or comes back empty,
takes no peer with it: everybody has written itself again before the lease that is granted then is over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenfleet.runtime.discovery.peers import Peer
from tokenfleet.runtime.discovery.registry import TIMEOUT_S, Record, RegistryRef, peers_of
from tokenfleet.runtime.ending import end
from tokenfleet.runtime.telemetry import get_logger

if TYPE_CHECKING:
    import redis.asyncio

POLL_S = 1.0
SCAN_COUNT = 1000

log = get_logger(__name__)


@dataclass(slots=True)
class _Lease:
    record: Record
    ends: float  # on the loop's clock


class RegistryWatch:
    """`peers` is None until the registry has been read once; after that the last known, come what may."""

    def __init__(self, registry: RegistryRef, changed: Callable[[], None], poll_s: float = POLL_S) -> None:
        self.peers: dict[str, Peer] | None = None
        self._registry = registry
        self._changed = changed
        self._poll_s = poll_s
        self._leases: dict[str, _Lease] = {}  # by key
        self._away = ""  # what was last logged
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        client = self._registry.connect()
        self._task = asyncio.create_task(self._follow(client), name=f"watch {self._registry}")

    async def stop(self) -> None:
        if self._task is not None:
            await end(self._task)

    async def _follow(self, client: redis.asyncio.Redis) -> None:
        from redis import RedisError

        async with client:
            while True:
                try:
                    await self._subscribed(client)
                except (RedisError, OSError, TimeoutError) as error:
                    self._failed(str(error) or type(error).__name__)
                await asyncio.sleep(self._poll_s)

    async def _subscribed(self, client: redis.asyncio.Redis) -> None:
        """Reads until something fails."""
        async with client.pubsub() as news:
            async with asyncio.timeout(TIMEOUT_S):
                await news.subscribe(self._registry.prefix)
            while True:
                async with asyncio.timeout(2 * TIMEOUT_S):
                    found = await self._read(client)
                self._take(found)
                # the confirmation of the subscription counts as news too: one reading more
                await news.get_message(timeout=self._poll_s)

    async def _read(self, client: redis.asyncio.Redis) -> dict[str, tuple[Record, float]]:
        """The records by key, with the seconds that are left of their leases."""
        pattern = f"{self._registry.prefix}*"
        keys = [str(key) async for key in client.scan_iter(match=pattern, count=SCAN_COUNT)]
        if not keys:
            return {}
        async with client.pipeline(transaction=False) as pipe:
            pipe.mget(keys)
            for key in keys:
                pipe.pttl(key)
            texts, *left_ms = await pipe.execute()
        found = {}
        for key, text, left in zip(keys, texts, left_ms, strict=True):
            if text is not None and left > 0:
                with contextlib.suppress(ValueError, TypeError):  # not ours: nobody can be reached by it
                    found[key] = Record.read(text), left / 1000
        return found

    def _take(self, found: dict[str, tuple[Record, float]]) -> None:
        now = asyncio.get_running_loop().time()
        if self._away:
            log.info("registry can be read again", registry=str(self._registry))
            self._away = ""
            for lease in self._leases.values():
                lease.ends = max(lease.ends, now + lease.record.lease_s)
        for key, (record, left_s) in found.items():
            self._leases[key] = _Lease(record, now + left_s)
        for key, lease in tuple(self._leases.items()):
            if key not in found and (lease.record.gone or lease.ends <= now):
                del self._leases[key]
        peers = peers_of(lease.record for lease in self._leases.values())
        if peers != self.peers:
            self.peers = peers
            self._changed()

    def _failed(self, error: str) -> None:
        if not self._away:
            log.warning(
                "registry cannot be read, the last known peers stay",
                registry=str(self._registry),
                error=error,
            )
        self._away = error
