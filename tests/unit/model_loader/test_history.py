"""History outlives the process with a store, and works without: late, absent, broken."""

from tokenfleet.model_loader.history import History, ModelHistory
from tokenfleet.model_loader.store import CATALOG_KEY, MODELS_KEY, HistoryKeeper, StoreError


class FakeStore:
    def __init__(self) -> None:
        self.hashes: dict[str, dict[str, str]] = {}
        self.up = True
        self.writes = 0

    async def read(self, key: str) -> dict[str, str]:
        if not self.up:
            raise StoreError("connection refused")
        return dict(self.hashes.get(key, {}))

    async def write(self, key: str, fields: dict[str, str]) -> None:
        if not self.up:
            raise StoreError("connection refused")
        self.writes += 1
        self.hashes.setdefault(key, {}).update(fields)

    async def close(self) -> None: ...


async def life(store: FakeStore, digest: str) -> tuple[History, HistoryKeeper]:
    """A process comes up with a catalog of that content."""
    history = History()
    keeper = HistoryKeeper(store, history)
    await keeper.exchange()
    history.catalog(digest)
    return history, keeper


async def test_a_restart_loses_nothing() -> None:
    store = FakeStore()
    history, keeper = await life(store, "one")
    history.loaded("m", 3.5)
    history.used("m", 1234)
    history.pin("n", True)
    await keeper.exchange()
    again, _ = await life(store, "one")
    assert again.of("m") == ModelHistory(last_used_unix_ms=1234, loads=1, last_load_s=3.5)
    assert again.of("n").pinned is True
    assert again.catalog_revision == 1


async def test_a_changed_catalog_gets_the_next_revision_whoever_reads_it() -> None:
    store = FakeStore()
    for digest, revision in (("one", 1), ("one", 1), ("two", 2), ("one", 3)):
        history, keeper = await life(store, digest)
        await keeper.exchange()
        assert history.catalog_revision == revision
    assert store.hashes[CATALOG_KEY] == {"digest": "one", "revision": "3"}


async def test_a_store_that_comes_late_is_merged_not_overwritten() -> None:
    store = FakeStore()
    history, keeper = await life(store, "one")
    history.loaded("m", 3.5)
    history.used("m", 1000)
    await keeper.exchange()
    store.up = False
    late, keeper = await life(store, "one")
    late.loaded("m", 2.0)
    late.used("m", 2000)
    await keeper.exchange()
    store.up = True
    await keeper.exchange()
    assert late.of("m") == ModelHistory(last_used_unix_ms=2000, loads=2, last_load_s=2.0)
    third, _ = await life(store, "one")
    assert third.of("m") == late.of("m")
    assert third.catalog_revision == 1


async def test_only_what_changed_is_written() -> None:
    store = FakeStore()
    history, keeper = await life(store, "one")
    await keeper.exchange()
    written = store.writes
    await keeper.exchange()
    assert store.writes == written
    history.used("m", 1)
    await keeper.exchange()
    assert store.writes == written + 1
    assert set(store.hashes[MODELS_KEY]) == {"m"}


async def test_what_was_stored_by_somebody_else_does_not_break_the_start() -> None:
    store = FakeStore()
    store.hashes[MODELS_KEY] = {"m": "{", "n": '{"unknown": 1}', "o": '{"loads": 2}'}
    history, _ = await life(store, "one")
    assert history.of("o").loads == 2
    assert history.of("m") == ModelHistory()
