"""A registry of peers in a store that speaks the Redis protocol: how it is named, and what is written there.

Each process has one key, made of the registry's name, the process's address and a token of its life, that
the store lets go when the lease runs out. So two processes of one name are two peers, and a process that was
killed and came back cannot lose its lease to the end of its former life.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tokenfleet.runtime.discovery.peers import Peer
from tokenfleet.runtime.lifecycle import StartupError
from tokenfleet.runtime.settings import split_address

if TYPE_CHECKING:
    import redis.asyncio

SCHEMES = ("redis://", "rediss://", "unix://")
TIMEOUT_S = 2.0  # for the store's answer

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(slots=True, frozen=True)
class RegistryRef:
    """A store, and the registry's name in it."""

    url: str
    name: str

    @classmethod
    def parse(cls, text: str) -> RegistryRef:
        """Raises ValueError with the remedy."""
        url, _, name = text.partition("#")
        if not url.startswith(SCHEMES) or not _NAME.fullmatch(name):
            raise ValueError(
                f"{_without_password(text)!r} names no registry: write redis://HOST:PORT/0#NAME or "
                "unix:///PATH#NAME, for example redis://store:6379/0#workers"
            )
        return cls(url, name)

    @property
    def prefix(self) -> str:
        """Of its keys, and the channel on which news is announced."""
        return f"tokenfleet:registry:{self.name}:"

    def __str__(self) -> str:
        return f"{_without_password(self.url)}#{self.name}"

    def connect(self) -> redis.asyncio.Redis:
        """Raises StartupError when the client library is missing."""
        try:
            # imported here: only who is configured so pays for it
            import redis.asyncio
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError as error:
            raise StartupError(f"{self}: the client is missing: pip install 'tokenfleet[redis]'") from error
        client: redis.asyncio.Redis = redis.asyncio.from_url(
            self.url,
            decode_responses=True,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),  # ours are slower, and logged
        )
        return client


@dataclass(slots=True, frozen=True, kw_only=True)
class Record:
    """What a process says about itself. `since` orders the lives at one address, in Unix seconds."""

    target: str
    zone: str = ""
    name: str = ""
    since: float = 0.0
    lease_s: float = 10.0
    terminating: bool = False
    gone: bool = False

    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Record:
        """Raises ValueError for what is no record; fields of a later version are passed over."""
        told = json.loads(text)
        if not isinstance(told, dict) or not isinstance(told.get("target"), str):
            raise ValueError("no record")
        split_address(told["target"])
        known = {name: told[name] for name in cls.__dataclass_fields__ if name in told}
        record = cls(**known)
        for number in (record.since, record.lease_s):
            if not isinstance(number, (int, float)):
                raise ValueError("no record")
        return record

    def peer(self) -> Peer:
        return Peer(
            self.target,
            zone=self.zone,
            name=self.name,
            ready=not self.terminating,
            terminating=self.terminating,
        )


def peers_of(records: Iterable[Record]) -> dict[str, Peer]:
    """By address; of several lives there the last one counts."""
    return {
        record.target: record.peer()
        for record in sorted(records, key=lambda record: record.since)
        if not record.gone
    }


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", text)
