import asyncio
import threading

import pytest

from tests.unit.tokenizer.fakes import loaded, publish, spec
from tokenfleet.runtime.catalog import CatalogWatch
from tokenfleet.runtime.errors import FleetError
from tokenfleet.tokenizer import registry as registry_module
from tokenfleet.tokenizer.model import LoadedModel
from tokenfleet.tokenizer.registry import ModelRegistry
from tokenfleet.v1 import common_pb2


class Loads:
    """Counts loads; each waits for `go`, and fails while there is an error to raise."""

    def __init__(self) -> None:
        self.specs: list[common_pb2.ModelSpec] = []
        self.error: Exception | None = None
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()

    def __call__(self, spec: common_pb2.ModelSpec) -> LoadedModel:
        self.specs.append(spec)
        self.entered.set()
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return loaded(spec)

    async def until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 10)
        self.entered.clear()


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
def catalog() -> CatalogWatch:
    return CatalogWatch("127.0.0.1:1")


@pytest.fixture
def registry(catalog: CatalogWatch, loads: Loads, monkeypatch: pytest.MonkeyPatch) -> ModelRegistry:
    monkeypatch.setattr(registry_module, "FIRST_PAUSE_S", 0.01)
    return ModelRegistry(catalog, loads)


def failed(message: str = "no such file") -> FleetError:
    return FleetError(common_pb2.REASON_LOAD_FAILED, message)


async def test_warm_models_are_loaded_at_once_and_lazy_ones_when_asked_for(
    catalog: CatalogWatch, registry: ModelRegistry, loads: Loads
) -> None:
    publish(catalog, spec("lazy"), spec("warm", warm=True))
    await registry.first_loaded.wait()
    assert [spec.name for spec in loads.specs] == ["warm"]
    assert registry.get("lazy") is None
    assert (await registry.obtain("lazy")).spec.name == "lazy"
    assert registry.get("lazy") is not None


async def test_without_warm_models_the_first_is_loaded(
    catalog: CatalogWatch, registry: ModelRegistry, loads: Loads
) -> None:
    publish(catalog, spec("a"), spec("b"))
    await registry.first_loaded.wait()
    assert [spec.name for spec in loads.specs] == ["a"]


async def test_all_who_want_a_model_share_one_load(
    catalog: CatalogWatch, registry: ModelRegistry, loads: Loads
) -> None:
    publish(catalog, spec("warm", warm=True), spec("lazy"))
    await registry.first_loaded.wait()
    models = await asyncio.gather(*(registry.obtain("lazy") for _ in range(5)))
    assert all(model is models[0] for model in models)
    assert len(loads.specs) == 2


async def test_one_that_gives_up_does_not_stop_the_load_for_the_others(
    catalog: CatalogWatch, registry: ModelRegistry, loads: Loads
) -> None:
    publish(catalog, spec("warm", warm=True), spec("lazy"))
    await registry.first_loaded.wait()
    loads.go.clear()
    impatient, patient = (asyncio.create_task(registry.obtain("lazy")) for _ in range(2))
    loads.entered.clear()
    await loads.until_entered()
    impatient.cancel()
    loads.go.set()
    assert (await patient).spec.name == "lazy"


async def test_an_unknown_model_is_named_with_what_there_is(
    catalog: CatalogWatch, registry: ModelRegistry
) -> None:
    publish(catalog, spec("warm", warm=True))
    with pytest.raises(FleetError, match="available: warm") as caught:
        registry.get("worm")
    assert caught.value.reason == common_pb2.REASON_MODEL_NOT_FOUND


async def test_a_failed_load_is_told_to_everybody_and_not_tried_again_at_once(
    catalog: CatalogWatch, registry: ModelRegistry, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "FIRST_PAUSE_S", 60.0)
    publish(catalog, spec("warm", warm=True), spec("lazy"))
    await registry.first_loaded.wait()
    loads.error = failed()
    for _ in range(3):
        with pytest.raises(FleetError, match="no such file"):
            await registry.obtain("lazy")
    assert len(loads.specs) == 2
    with pytest.raises(FleetError) as caught:
        registry.get("lazy")
    assert 0 < caught.value.retry_after_s <= 60


async def test_a_warm_model_is_tried_until_it_loads(
    catalog: CatalogWatch, registry: ModelRegistry, loads: Loads
) -> None:
    loads.error = failed()
    publish(catalog, spec("warm", warm=True))
    for _ in range(3):
        await loads.until_entered()
    assert not registry.first_loaded.is_set()
    loads.error = None
    await registry.first_loaded.wait()


async def test_a_crash_while_loading_is_a_typed_error(
    catalog: CatalogWatch, registry: ModelRegistry, loads: Loads
) -> None:
    publish(catalog, spec("warm", warm=True), spec("lazy"))
    await registry.first_loaded.wait()
    loads.error = ZeroDivisionError("oh")
    with pytest.raises(FleetError, match="oh") as caught:
        await registry.obtain("lazy")
    assert caught.value.reason == common_pb2.REASON_INTERNAL


async def test_a_changed_entry_is_loaded_anew_before_it_serves(
    catalog: CatalogWatch, registry: ModelRegistry, loads: Loads
) -> None:
    publish(catalog, spec("m", warm=True, block_size=2))
    await registry.first_loaded.wait()
    publish(catalog, spec("m", warm=True, block_size=4))
    assert registry.get("m") is None
    assert (await registry.obtain("m")).spec.block_size == 4


async def test_an_entry_that_changes_while_it_loads_is_loaded_again(
    catalog: CatalogWatch, registry: ModelRegistry, loads: Loads
) -> None:
    loads.go.clear()
    publish(catalog, spec("m", warm=True, block_size=2))
    waiting = asyncio.create_task(registry.obtain("m"))
    await loads.until_entered()
    publish(catalog, spec("m", warm=True, block_size=4))
    loads.go.set()
    assert (await waiting).spec.block_size == 4
    assert [spec.block_size for spec in loads.specs] == [2, 4]


async def test_a_removed_entry_is_forgotten(catalog: CatalogWatch, registry: ModelRegistry) -> None:
    publish(catalog, spec("a", warm=True), spec("b", warm=True))
    await asyncio.gather(registry.obtain("a"), registry.obtain("b"))
    publish(catalog, spec("a", warm=True))
    assert [model.spec.name for model in registry.loaded()] == ["a"]
    with pytest.raises(FleetError, match="does not exist"):
        registry.get("b")


async def test_stopping_ends_its_tasks(catalog: CatalogWatch, registry: ModelRegistry, loads: Loads) -> None:
    loads.error = failed()
    publish(catalog, spec("warm", warm=True))
    await loads.until_entered()
    await registry.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_who_asks_in_the_moment_in_which_a_load_ends_gets_the_model(
    catalog: CatalogWatch, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a task's last step and the callbacks of its end others may run, who once asked for ever."""
    loaded_now = asyncio.get_running_loop().create_future()

    async def on_no_thread(load: Loads, of: common_pb2.ModelSpec) -> LoadedModel:
        await loaded_now
        return load(of)

    async def asks_then() -> LoadedModel:
        await loaded_now
        return await registry.obtain("lazy")

    monkeypatch.setattr(asyncio, "to_thread", on_no_thread)
    publish(catalog, spec("warm", warm=True), spec("lazy"))
    first = asyncio.create_task(registry.obtain("lazy"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(asks_then())
    await asyncio.sleep(0)
    loaded_now.set_result(None)
    assert await second is await first
    await registry.stop()
