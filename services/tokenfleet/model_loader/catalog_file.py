"""Follows the catalog file: a good change takes effect, a bad one is logged and the last good one stays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from tokenfleet.model_loader.catalog import Catalog, CatalogError, read_catalog
from tokenfleet.runtime.telemetry import get_logger

log = get_logger(__name__)


class CatalogFile:
    """Reads at start, then again whenever the file is another one or has changed."""

    def __init__(self, path: Path, poll_s: float, changed: Callable[[Catalog], None]) -> None:
        self._path = path
        self._poll_s = poll_s
        self._changed = changed
        self._stamp = _stamp(path)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Raises CatalogError when the first catalog is bad."""
        self._changed(read_catalog(self._path))
        self._task = asyncio.create_task(self._follow(), name="catalog")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                continue
            self._stamp = stamp
            try:
                self._changed(await asyncio.to_thread(read_catalog, self._path))
            except CatalogError as error:
                for problem in error.problems:
                    log.error("catalog not taken: the last good one stays", problem=problem)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
