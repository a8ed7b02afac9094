"""The state directory: one fleet at a time, found again by `tokenfleet status`, cleaned after a crash.

    <root>/<port>/lock         held (flock) by the living supervisor; the kernel lets go of it in any case
    <root>/<port>/fleet.json   what runs where, for people and for `tokenfleet status`
    <root>/<port>/logs/        one file a process, and the previous run's beside it
    <root>/<port>/store/       what the store keeps between runs
    <root>/<port>/tmp/         the processes' temporary files; emptied at the start and at the end

The record also has the fleet's id, which every process carries in its environment: by it the next supervisor
ends what a killed one left behind, without ever touching an unrelated process that got the same pid.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenfleet.cli.local_fleet.errors import FleetAlreadyRunsError

# In every process's environment; its value is the fleet's id.
FLEET_ID_VARIABLE = "TOKENFLEET_FLEET_ID"
# The kernel's limit on the path of a Unix socket is 108 bytes on Linux, 104 on macOS.
MAX_SOCKET_PATH_BYTES = 100
# What processes append to the path of the folder for temporary files: a folder each, and a socket in it.
_SOCKET_BELOW_BYTES = 40
_PRIVATE = "tokenfleet-"


def default_root() -> Path:
    """$TOKENFLEET_STATE, else the user's state directory."""
    if configured := os.environ.get("TOKENFLEET_STATE"):
        return Path(configured).expanduser().resolve()
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "tokenfleet"


class StateDir:
    """One fleet's directory, locked for the life of its supervisor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.store_data = path / "store"
        self._record = path / "fleet.json"
        self._lock_fd = -1
        self.temporary: Path | None = None

    def lock(self) -> dict[str, Any]:
        """Takes the directory; answers a dead predecessor's record. Raises FleetAlreadyRunsError."""
        for each in (self.path, self.logs, self.store_data):
            each.mkdir(parents=True, exist_ok=True)
        self._lock_fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        record = read_record(self.path)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock_fd)
            self._lock_fd = -1
            raise FleetAlreadyRunsError(record.get("http_port", 0), record.get("pid", 0)) from error
        for log in self.logs.glob("*.log"):
            if not log.name.endswith(".previous.log"):
                log.replace(log.with_suffix(".previous.log"))
        return record

    def prepare_temporary(self, predecessor: Mapping[str, Any]) -> Path:
        """An empty folder for the processes' temporary files; what a killed fleet had there is removed.

        Below the directory, or a private one where the sockets in it would get too long a path.
        """
        here = self.path / "tmp"
        shutil.rmtree(here, ignore_errors=True)
        left = Path(predecessor.get("temporary", ""))
        if left.name.startswith(_PRIVATE):
            shutil.rmtree(left, ignore_errors=True)
        if len(os.fsencode(here)) + _SOCKET_BELOW_BYTES <= MAX_SOCKET_PATH_BYTES:
            here.mkdir(mode=0o700)
            self.temporary = here
        else:
            self.temporary = Path(tempfile.mkdtemp(prefix=_PRIVATE))
        return self.temporary

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"

    def socket_path(self, name: str) -> Path:
        """A path for a Unix socket: here, or among the temporary files where this path is too long."""
        here = self.path / name
        if len(os.fsencode(here)) <= MAX_SOCKET_PATH_BYTES:
            here.unlink(missing_ok=True)
            return here
        assert self.temporary is not None, "prepare_temporary() comes first"
        return self.temporary / name

    def write_record(self, record: dict[str, Any]) -> None:
        fresh = self._record.with_suffix(".new")
        fresh.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        fresh.replace(self._record)

    def unlock(self) -> None:
        """Gives the directory back. Logs and the store's data stay."""
        if self._lock_fd < 0:
            return
        self._record.unlink(missing_ok=True)
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary = None
        os.close(self._lock_fd)
        self._lock_fd = -1


def read_record(path: Path) -> dict[str, Any]:
    """The record of the fleet in a state directory; empty where there is none."""
    try:
        text = (path / "fleet.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    record: dict[str, Any] = json.loads(text)
    return record


def running_fleets(root: Path) -> Iterator[dict[str, Any]]:
    """The records of all fleets below `root` whose supervisor lives."""
    for lock in sorted(root.glob("*/lock")):
        if _is_held(lock) and (record := read_record(lock.parent)):
            yield record


def _is_held(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
