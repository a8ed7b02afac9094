"""Peers of every kind as one changing set, told to a listener as differences."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tokenfleet.runtime.discovery.peers import SCHEME, Peer, ServiceRef
from tokenfleet.runtime.discovery.registry import SCHEMES, RegistryRef
from tokenfleet.runtime.discovery.registry_watch import RegistryWatch
from tokenfleet.runtime.discovery.service_watch import ServiceWatch
from tokenfleet.runtime.telemetry import get_logger

SYNC_POLL_S = 0.5

log = get_logger(__name__)


class PeerListener(Protocol):
    """Whoever depends on peers. All calls come on the event loop."""

    def peer_came(self, peer: Peer) -> None: ...

    def peer_changed(self, peer: Peer) -> None:
        """The same address, with something else about it; never called when nothing changed."""

    def peer_left(self, target: str) -> None: ...


class Discovery:
    """Follows the peers that settings name. Belongs to one event loop."""

    def __init__(self, targets: Sequence[str], listener: PeerListener) -> None:
        """`targets` as `PeerTargets` accepts them."""
        self._listener = listener
        self._static = {
            target: Peer(target) for target in targets if not target.startswith((SCHEME, *SCHEMES))
        }
        self._watches: list[ServiceWatch | RegistryWatch] = []
        for target in targets:
            if target.startswith(SCHEME):
                self._watches.append(ServiceWatch(ServiceRef.parse(target), self._refresh))
            elif target.startswith(SCHEMES):
                self._watches.append(RegistryWatch(RegistryRef.parse(target), self._refresh))
        self.peers: dict[str, Peer] = {}
        self.synced = asyncio.Event()  # all have been listed once: who is missing is not there

    def start(self) -> None:
        """Tells the configured addresses at once, and the others as they become known."""
        self._refresh()
        for watch in self._watches:
            watch.start()

    async def wait_synced(self, stopping: asyncio.Event, meanwhile: Callable[[float], None]) -> bool:
        """Whether everybody became known before `stopping`; until then tells `meanwhile` the loop's time.

        So that who asks for a peer before can be made to wait instead of being told that there is none.
        """
        loop = asyncio.get_running_loop()
        while not self.synced.is_set() and not stopping.is_set():
            meanwhile(loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SYNC_POLL_S):
                    await self.synced.wait()
        return not stopping.is_set()

    async def stop(self) -> None:
        await asyncio.gather(*(watch.stop() for watch in self._watches))

    def _refresh(self) -> None:
        wanted = dict(self._static)
        for watch in self._watches:
            wanted.update(watch.peers or {})
        if not self.synced.is_set() and all(watch.peers is not None for watch in self._watches):
            self.synced.set()
        self._tell(wanted)

    def _tell(self, wanted: Mapping[str, Peer]) -> None:
        before, self.peers = self.peers, dict(wanted)
        for target in before:
            if target not in wanted:
                log.info("peer left", target=target)
                self._listener.peer_left(target)
        for target, peer in wanted.items():
            known = before.get(target)
            if known is None:
                if target not in self._static:
                    log.info("peer came", target=target, pod=peer.name, zone=peer.zone, ready=peer.ready)
                self._listener.peer_came(peer)
            elif known != peer:
                log.info("peer changed", target=target, ready=peer.ready, terminating=peer.terminating)
                self._listener.peer_changed(peer)
