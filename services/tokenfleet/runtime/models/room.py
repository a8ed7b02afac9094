"""How much of a disk the model cache takes, and what goes when it is too much.

What the cache holds is counted in *homes*: folders that came as a whole and go as a whole. The least recently
used goes first, and one that a living process uses never does. Using is a shared lock on a small file beside,
which the kernel releases with the process, so that no crash leaves a model that can never go; that file's
time of change is when the home was last wanted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models.bundle import load_failed
from tokenfleet.runtime.telemetry import get_logger

# Folders below the root that hold homes, and how deep these lie in them.
_SHELVES = {"files/pip": 2, "files/hf": 3, "tokenizers": 1, "converted": 1}

log = get_logger(__name__)


class Room:
    """The cache's folder; `bound_bytes` is what it may hold, 0 without a bound."""

    def __init__(self, root: Path, bound_bytes: int = 0) -> None:
        self._root = root
        self._bound_bytes = bound_bytes
        self._held: dict[str, dict[Path, int]] = {}  # by user: its homes, and the locks' descriptors
        self._holding = threading.Lock()

    # -- use ---------------------------------------------------------------------------------------

    def hold(self, home: Path, user: str) -> None:
        """The home stays as long as this process lives or until `release`; it need not exist yet."""
        try:
            lease = self._lease(home)
            with self._holding:
                held = self._held.setdefault(user, {})
                if home not in held:
                    descriptor = os.open(lease, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                    held[home] = descriptor
            os.utime(lease)
        except OSError as error:
            # where nothing may be written, nothing goes either: a cache that was filled beforehand
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise

    def release(self, user: str) -> None:
        """What it held may go when the room is wanted."""
        with self._holding:
            for descriptor in self._held.pop(user, {}).values():
                os.close(descriptor)

    # -- room --------------------------------------------------------------------------------------

    def make(self, needed_bytes: int, what: str) -> None:
        """Lets the least recently used go until that much fits. Raises FleetError (LOAD_FAILED)."""
        with self._alone():
            taken = self._evict_for(needed_bytes)
            if self._bound_bytes and taken + needed_bytes > self._bound_bytes:
                raise load_failed(
                    f"no room for {what}: it takes {size_text(needed_bytes)}, the cache may hold "
                    f"{size_text(self._bound_bytes)}, and {size_text(taken)} of that are in use: unload a "
                    "model, or raise --cache-bytes"
                )
            self._check_disk(needed_bytes, what)

    def settle(self, home: Path, what: str) -> None:
        """After a download: the bound holds again, if need be without it. Raises FleetError (LOAD_FAILED)."""
        if not self._bound_bytes:
            return
        with self._alone():
            taken = self._evict_for(0)
            if taken <= self._bound_bytes:
                return
            size = size_of(home)
            shutil.rmtree(home, ignore_errors=True)
        raise load_failed(
            f"no room for {what}: with its {size_text(size)} the cache would hold {size_text(taken)} of at "
            f"most {size_text(self._bound_bytes)}: unload a model, or raise --cache-bytes"
        )

    def full(self, error: OSError, what: str, written_bytes: int, expected_bytes: int) -> FleetError:
        """What a write that found no space means for people."""
        if error.errno == errno.EFBIG:
            where = "it is larger than this process may write (ulimit -f)"
        else:
            where = f"no space left at {self._root}"
        missing = expected_bytes - written_bytes
        much = f", {size_text(missing)} are missing" if missing > 0 else ""
        return load_failed(
            f"cannot fetch {what}: {where} after {size_text(written_bytes)}{much}. Free some space, or "
            "choose another place with --cache-dir"
        )

    # -- inside ------------------------------------------------------------------------------------

    def _evict_for(self, needed_bytes: int) -> int:
        """Bytes that remain."""
        if not self._bound_bytes:
            return 0
        sizes = {home: size_of(home) for home in self._homes()}
        taken = sum(sizes.values())
        for home in sorted(sizes, key=self._last_use):
            fits = taken + needed_bytes <= self._bound_bytes
            if fits and needed_bytes <= shutil.disk_usage(self._root).free:
                break
            if self._evict(home):
                log.info("evicted from the model cache", home=str(home), bytes=sizes[home])
                taken -= sizes[home]
        return taken

    def _evict(self, home: Path) -> bool:
        if home.parent.name == "staging":
            return self._clear_leftover(home)
        with open(self._lease(home), "a") as lease:
            try:
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            shutil.rmtree(home, ignore_errors=True)
        return not home.exists()

    def _clear_leftover(self, staging: Path) -> bool:
        """What a download that broke off left to be resumed, unless somebody is at it."""
        try:
            with FileLock(self._root / "locks" / f"{staging.name}.lock", timeout=0):
                shutil.rmtree(staging, ignore_errors=True)
        except Timeout:
            return False
        return not staging.exists()

    def _homes(self) -> Iterator[Path]:
        for shelf, depth in _SHELVES.items():
            for home in (self._root / shelf).glob("/".join(["*"] * depth)):
                if home.is_dir():
                    yield home
        yield from (self._root / "staging").glob("*")

    def _last_use(self, home: Path) -> float:
        for known in (self._lease(home), home):
            with suppress(OSError):
                return known.stat().st_mtime
        return 0.0

    def _check_disk(self, needed_bytes: int, what: str) -> None:
        free = shutil.disk_usage(self._root).free
        if needed_bytes > free:
            raise load_failed(
                f"no space for {what}: it takes {size_text(needed_bytes)}, and {size_text(free)} are free at "
                f"{self._root}: {size_text(needed_bytes - free)} are missing. Free some space, or choose "
                "another place with --cache-dir"
            )

    def _alone(self) -> FileLock:
        (self._root / "locks").mkdir(parents=True, exist_ok=True)
        return FileLock(self._root / "locks" / "room.lock")

    def _lease(self, home: Path) -> Path:
        leases = self._root / "leases"
        leases.mkdir(parents=True, exist_ok=True)
        return leases / "--".join(home.relative_to(self._root).parts)


def is_disk_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def size_of(path: Path) -> int:
    """Of all files below; those that go away meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(parent, name), follow_symlinks=False).st_size
    return total


def size_text(size: float) -> str:
    """For people: 1.5 GiB."""
    if size < 1024:
        return f"{size:.0f} bytes"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"
