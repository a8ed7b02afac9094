"""Files that may change under a running process: certificates and keys, replaced without a restart.

They are looked at by their metadata every few seconds. Notifications of the kernel would miss what matters
most: Kubernetes replaces a mounted secret by swapping a symbolic link in a folder above it. `stat` follows
links, so a swapped one shows as another file.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenfleet.runtime.telemetry import get_logger

log = get_logger(__name__)

_Stamp = tuple[int, int, int] | None


class FileWatch:
    """Calls `changed` from the event loop when one of the files is another one than before.

    The files count as known from the construction on, so construct it before you read them.
    """

    def __init__(self, paths: Iterable[Path], changed: Callable[[], None], poll_s: float) -> None:
        self._paths = tuple(paths)
        self._changed = changed
        self._poll_s = poll_s
        self._stamps = self._look()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._follow(), name=f"watch {self._paths[0]}")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def check(self) -> None:
        """Looks now."""
        stamps = self._look()
        if stamps != self._stamps:
            # before the reading: a change in between is then seen the next time
            self._stamps = stamps
            self._changed()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                self.check()
            except Exception:
                # whoever reads the files says what is wrong with them; this is a defect of ours
                log.exception("changed file not taken", files=[str(path) for path in self._paths])

    def _look(self) -> tuple[_Stamp, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
