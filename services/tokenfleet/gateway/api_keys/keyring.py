"""The keys in force: looked up once a request, read again when the file has changed.

A file that can no longer be used changes nothing: an edit that went wrong must neither open the gateway nor
lock everybody out.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from tokenfleet.gateway.api_keys.keys_file import ApiKey, KeysFileError, read_keys
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.file_watch import FileWatch
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2 as pb

SCHEME = b"bearer "

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request."""

    tenant: str = "default"
    ceiling: pb.Priority.ValueType = pb.PRIORITY_INTERACTIVE
    digest: str = ""  # of the key by which we know
    admin: bool = False  # may administer the fleet's models

    def priority(self, wanted: pb.Priority.ValueType = pb.PRIORITY_STANDARD) -> pb.Priority.ValueType:
        """The wanted class, or the highest that this caller may have."""
        return max(wanted, self.ceiling)  # the more urgent a class, the smaller its number


ANYBODY = Caller()


@dataclass(frozen=True, slots=True)
class _Entry:
    caller: Caller
    expires_at: float  # Unix time


class Keyring:
    """Knows callers by their keys; without a file, everybody is the same caller."""

    def __init__(self, path: Path | None = None, poll_s: float = 5.0) -> None:
        """Raises KeysFileError when the first file is bad."""
        self._path = path
        self._entries: dict[str, _Entry] = {}
        self._watch: FileWatch | None = None
        if path is not None:
            self._watch = FileWatch((path,), self._read_again, poll_s)
            self._take(read_keys(path))

    @property
    def required(self) -> bool:
        return self._path is not None

    def admit(self, authorization: bytes | None) -> Caller:
        """The caller with this Authorization header. Raises FleetError (UNAUTHENTICATED)."""
        if self._path is None:
            return ANYBODY
        if authorization is None:
            raise _unauthenticated("no API key was sent: send it as `Authorization: Bearer KEY`")
        if authorization[: len(SCHEME)].lower() != SCHEME:
            raise _unauthenticated("the Authorization header is none of the kind `Bearer KEY`")
        return self.admit_key(authorization[len(SCHEME) :].strip())

    def admit_key(self, key: bytes) -> Caller:
        """The caller with this key. Raises FleetError (UNAUTHENTICATED)."""
        if self._path is None:
            return ANYBODY
        return self._by_digest(hashlib.sha256(key).hexdigest())

    def admit_again(self, caller: Caller) -> Caller:
        """The same caller as of now, for connections that outlive a key. Raises FleetError likewise."""
        return self._by_digest(caller.digest) if self._path is not None else ANYBODY

    def start(self) -> None:
        """Follows the file from now on."""
        if self._watch is not None:
            self._watch.start()

    async def stop(self) -> None:
        if self._watch is not None:
            await self._watch.stop()

    def _by_digest(self, digest: str) -> Caller:
        entry = self._entries.get(digest)
        if entry is None:
            raise _unauthenticated("this API key is not known here: is it complete, and of this fleet?")
        if entry.expires_at <= time.time():
            raise _unauthenticated("this API key has expired: ask for a new one")
        return entry.caller

    def _read_again(self) -> None:
        assert self._path is not None
        try:
            self._take(read_keys(self._path))
        except KeysFileError as error:
            for problem in error.problems:
                log.error("API keys not taken: the last good ones stay", problem=problem)

    def _take(self, keys: dict[str, ApiKey]) -> None:
        self._entries = {sha256: _entry(key) for sha256, key in keys.items()}
        tenants = {key.tenant for key in keys.values()}
        log.info("API keys", file=str(self._path), keys=len(keys), tenants=len(tenants))


def _entry(key: ApiKey) -> _Entry:
    expires_at = key.expires.timestamp() if key.expires is not None else float("inf")
    return _Entry(Caller(key.tenant, key.ceiling, key.sha256, key.admin), expires_at)


def _unauthenticated(message: str) -> FleetError:
    return FleetError(pb.REASON_UNAUTHENTICATED, message)
