"""The whole catalog: what its file says, and what operators added to it while the fleet runs.

An added entry is checked as one of the file is, and kept in the history, so that it outlives this process
where there is a store. The file is its owners' own: what it says is changed there, and wins over an addition
of the same name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from tokenfleet.model_loader.catalog import Catalog, CatalogError, ModelEntry, across, read_entry
from tokenfleet.model_loader.history import History
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2

log = get_logger(__name__)


class Entries:
    """File and additions as one catalog; `changed` is told every new whole."""

    def __init__(self, history: History, changed: Callable[[Catalog], None]) -> None:
        self._history = history
        self._changed = changed
        self._file = Catalog((), "")
        self._refused: set[str] = set()  # additions that were found wanting, each logged once

    def file_read(self, catalog: Catalog) -> None:
        """A good catalog file, the first or a changed one."""
        self._file = catalog
        self.refresh()

    def refresh(self) -> None:
        """The file or what is remembered of additions is another than before."""
        added = [entry for name, text in self._history.added() if (entry := self._recall(name, text))]
        entries = self._file.entries + tuple(added)
        digest = self._file.digest
        if added:
            texts = "".join(entry.model_dump_json() for entry in added)
            digest = hashlib.sha256((digest + texts).encode()).hexdigest()
        self._changed(Catalog(entries, digest))

    def is_added(self, name: str) -> bool:
        return name in dict(self._history.added()) and not self._in_file(name)

    def add(self, text: str, *, replace: bool) -> ModelEntry:
        """Raises FleetError with every problem of the entry."""
        try:
            entry = read_entry(text)
        except CatalogError as error:
            raise _invalid("; ".join(error.problems)) from error
        if self._in_file(entry.name):
            raise _invalid(f"model {entry.name!r} is in the catalog file: change it there", "name")
        former = dict(self._history.added()).get(entry.name)
        if former and former != entry.model_dump_json() and not replace:
            raise _invalid(f"model {entry.name!r} was added already: ask for it to be replaced", "name")
        others = [known for known in self._known() if known.name != entry.name]
        problems = across([*others, entry])
        if problems:
            raise _invalid("; ".join(problems), "fallback")
        self._refused.discard(entry.name)
        self._history.add_entry(entry.name, entry.model_dump_json())
        self.refresh()
        return entry

    def remove(self, name: str) -> None:
        """Raises FleetError when there is no such addition, or another entry needs it."""
        if self._in_file(name):
            raise _invalid(f"model {name!r} is in the catalog file: take it out there", "model")
        if name not in dict(self._history.added()):
            raise FleetError(common_pb2.REASON_MODEL_NOT_FOUND, f"no model {name!r} was added", field="model")
        leaning = sorted(entry.name for entry in self._known() if entry.fallback == name)
        if leaning:
            raise _invalid(
                f"model {name!r} is the fallback of {', '.join(leaning)}: change that first", "model"
            )
        self._history.remove_entry(name)
        self.refresh()

    def _known(self) -> Iterable[ModelEntry]:
        yield from self._file.entries
        for name, text in self._history.added():
            if entry := self._recall(name, text):
                yield entry

    def _in_file(self, name: str) -> bool:
        return any(entry.name == name for entry in self._file.entries)

    def _recall(self, name: str, text: str) -> ModelEntry | None:
        """An addition, unless the file has that name, or another version of this program wrote it."""
        if self._in_file(name):
            self._refuse(name, "the catalog file has an entry of that name")
            return None
        try:
            return read_entry(text)
        except CatalogError as error:
            self._refuse(name, "; ".join(error.problems))
            return None

    def _refuse(self, name: str, problem: str) -> None:
        if name not in self._refused:
            self._refused.add(name)
            log.error("an added model is left out", model=name, problem=problem)


def _invalid(message: str, field: str = "entry") -> FleetError:
    return FleetError(common_pb2.REASON_INVALID_ARGUMENT, message, field=field)
