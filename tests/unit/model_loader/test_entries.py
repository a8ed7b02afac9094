"""Entries that operators add: checked like those of the file, kept, taken out again."""

import json

import pytest

from tests.unit.model_loader.test_history import FakeStore
from tokenfleet.model_loader.catalog import Catalog, ModelEntry
from tokenfleet.model_loader.entries import Entries
from tokenfleet.model_loader.history import History
from tokenfleet.model_loader.store import HistoryKeeper
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2


def raw(name: str, **fields: object) -> dict[str, object]:
    return {
        "name": name,
        "source": "file:///models/m.gguf",
        "context_length": 4096,
        "engines": [{"engine": "sim"}],
        **fields,
    }


def text(name: str, **fields: object) -> str:
    return json.dumps(raw(name, **fields))


class World:
    def __init__(self, *in_file: str, history: History | None = None) -> None:
        self.seen: list[Catalog] = []
        self.history = history or History()
        self.entries = Entries(self.history, self.seen.append)
        file = Catalog(tuple(ModelEntry.model_validate(raw(name)) for name in in_file), "file")
        self.entries.file_read(file)

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.seen[-1].entries]

    def refused(self, entry: str, *, replace: bool = False) -> FleetError:
        with pytest.raises(FleetError) as raised:
            self.entries.add(entry, replace=replace)
        assert raised.value.reason == common_pb2.REASON_INVALID_ARGUMENT
        return raised.value


def test_an_added_entry_joins_the_files_and_changes_the_catalogs_digest() -> None:
    world = World("one")
    assert world.seen[-1].digest == "file"
    world.entries.add(text("two"), replace=False)
    assert world.names == ["one", "two"]
    assert world.seen[-1].digest != "file"
    assert (world.entries.is_added("two"), world.entries.is_added("one")) == (True, False)
    world.entries.remove("two")
    assert world.names == ["one"]
    assert world.seen[-1].digest == "file"


def test_every_problem_of_an_entry_is_told() -> None:
    world = World("one")
    message = world.refused(text("two", polcy="warm", context_length=0)).message
    assert "did you mean policy" in message
    assert "context_length" in message
    assert "keys of one model" in world.refused("- a list").message
    assert "entry" in world.refused("{").message
    assert "no model 'three'" in world.refused(text("two", fallback="three")).message
    assert world.names == ["one"]


def test_names_belong_to_whoever_had_them_first() -> None:
    world = World("one")
    assert "change it there" in world.refused(text("one")).message
    world.entries.add(text("two"), replace=False)
    world.entries.add(text("two"), replace=False)  # the same again is no conflict
    assert "replaced" in world.refused(text("two", context_length=1)).message
    world.entries.add(text("two", context_length=1), replace=True)
    assert world.seen[-1].entries[-1].context_length == 1


def test_what_others_lean_on_stays() -> None:
    world = World("one")
    world.entries.add(text("two"), replace=False)
    world.entries.add(text("three", fallback="two"), replace=False)
    with pytest.raises(FleetError, match="fallback of three"):
        world.entries.remove("two")
    world.entries.remove("three")
    world.entries.remove("two")
    for name, reason in (
        ("one", common_pb2.REASON_INVALID_ARGUMENT),
        ("two", common_pb2.REASON_MODEL_NOT_FOUND),
    ):
        with pytest.raises(FleetError) as raised:
            world.entries.remove(name)
        assert raised.value.reason == reason


def test_the_file_wins_over_an_addition_that_it_catches_up_with() -> None:
    world = World()
    world.entries.add(text("one", context_length=1), replace=False)
    world.entries.file_read(Catalog((ModelEntry.model_validate(raw("one")),), "new"))
    assert [entry.context_length for entry in world.seen[-1].entries] == [4096]
    assert not world.entries.is_added("one")


async def test_additions_and_removals_outlive_the_process() -> None:
    store = FakeStore()
    first = World("one")
    keeper = HistoryKeeper(store, first.history)
    first.entries.add(text("two"), replace=False)
    first.entries.add(text("three"), replace=False)
    first.entries.remove("three")
    await keeper.exchange()
    history = History()
    await HistoryKeeper(store, history).exchange()
    assert World("one", history=history).names == ["one", "two"]


async def test_a_store_that_comes_late_brings_its_additions_and_does_not_undo_what_was_done() -> None:
    store = FakeStore()
    first = World()
    first.entries.add(text("two"), replace=False)
    first.entries.add(text("three"), replace=False)
    await HistoryKeeper(store, first.history).exchange()
    store.up = False
    second = World()
    keeper = HistoryKeeper(store, second.history)
    second.history.on_recall.append(second.entries.refresh)
    await keeper.exchange()
    second.entries.add(text("three", context_length=1), replace=False)
    store.up = True
    await keeper.exchange()
    assert second.names == ["three", "two"]
    assert second.seen[-1].entries[0].context_length == 1
