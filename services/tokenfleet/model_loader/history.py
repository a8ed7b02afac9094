"""What the loader remembers: its models' use, loads and pins, added entries, the catalog's revision.

It lives in this process and works without a store; a store only makes it outlive the process. Nothing that
traffic depends on is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class ModelHistory:
    """One model. `pinned` is None while nobody pinned or unpinned it."""

    last_used_unix_ms: int = 0
    loads: int = 0
    failures: int = 0
    last_load_s: float = 0.0
    pinned: bool | None = None

    def merge(self, stored: ModelHistory) -> None:
        """Takes up what was stored before this process knew of it."""
        self.last_used_unix_ms = max(self.last_used_unix_ms, stored.last_used_unix_ms)
        self.loads += stored.loads
        self.failures += stored.failures
        self.last_load_s = self.last_load_s or stored.last_load_s
        self.pinned = stored.pinned if self.pinned is None else self.pinned


class History:
    """All models' past; `changed` names those that a store does not know yet, `entries_changed` the same of
    `entries`, which are texts by name, and empty for those that were removed."""

    def __init__(self) -> None:
        self.models: dict[str, ModelHistory] = {}
        self.changed: set[str] = set()
        self.entries: dict[str, str] = {}
        self.entries_changed: set[str] = set()
        self.on_recall: list[Callable[[], None]] = []
        self.catalog_digest = ""
        self.catalog_revision = 0
        self.catalog_changed = False

    def of(self, model: str) -> ModelHistory:
        return self.models.setdefault(model, ModelHistory())

    def used(self, model: str, unix_ms: int) -> None:
        self.of(model).last_used_unix_ms = unix_ms
        self.changed.add(model)

    def loaded(self, model: str, seconds: float) -> None:
        past = self.of(model)
        past.loads += 1
        past.last_load_s = seconds
        self.changed.add(model)

    def load_failed(self, model: str) -> None:
        self.of(model).failures += 1
        self.changed.add(model)

    def pin(self, model: str, pinned: bool) -> None:
        self.of(model).pinned = pinned
        self.changed.add(model)

    def added(self) -> list[tuple[str, str]]:
        """Entries that were added and not removed, by name."""
        return sorted((name, text) for name, text in self.entries.items() if text)

    def add_entry(self, name: str, text: str) -> None:
        self.entries[name] = text
        self.entries_changed.add(name)

    def remove_entry(self, name: str) -> None:
        self.add_entry(name, "")

    def catalog(self, digest: str) -> int:
        """The revision of a catalog with that content: one more whenever it differs from the last."""
        if digest != self.catalog_digest:
            self.catalog_digest = digest
            self.catalog_revision += 1
            self.catalog_changed = True
        return self.catalog_revision

    def recall(
        self,
        models: dict[str, ModelHistory],
        digest: str,
        revision: int,
        entries: dict[str, str] | None = None,
    ) -> None:
        """Takes up what a store kept, whenever it comes."""
        for name, stored in models.items():
            self.of(name).merge(stored)
        self.entries = {**(entries or {}), **self.entries}
        if not self.catalog_digest:
            self.catalog_digest, self.catalog_revision = digest, revision
        elif revision >= self.catalog_revision:
            self.catalog_revision = revision + (digest != self.catalog_digest)
            self.catalog_changed = True
        for call in self.on_recall:
            call()
