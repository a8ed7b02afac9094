"""Which models this process can encode for: warm ones from the start, the others from their first job on.

A load happens on a thread and once for all who want it. A failed one is remembered for a while and tells
everybody the same, so that a model that cannot be fetched costs one attempt every few seconds and not one per
request. When a catalog entry changes, its tokenizer is loaded anew before it serves again: ids of the old one
would be wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tokenfleet.runtime.catalog import CatalogWatch
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.tokenizer.model import LoadedModel
from tokenfleet.v1 import common_pb2

log = get_logger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0

Open = Callable[[common_pb2.ModelSpec], LoadedModel]


@dataclass(slots=True)
class _Failed:
    error: FleetError
    pause_s: float
    again_at: float  # on the event loop's clock


class ModelRegistry:
    """`load` blocks and runs on a thread; everything else belongs to the event loop."""

    def __init__(self, catalog: CatalogWatch, load: Open) -> None:
        self._catalog = catalog
        self._load = load
        self._loaded: dict[str, LoadedModel] = {}
        self._loading: dict[str, asyncio.Task[LoadedModel]] = {}
        self._failed: dict[str, _Failed] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        # Set for good once any model has been loaded.
        self.first_loaded = asyncio.Event()
        catalog.on_change.append(self._catalog_changed)

    def loaded(self) -> Iterable[LoadedModel]:
        return self._loaded.values()

    def get(self, name: str) -> LoadedModel | None:
        """The model if it is ready, None if it has to be loaded. Raises FleetError if it cannot be had."""
        model = self._loaded.get(name)
        if model is not None:
            return model
        self._catalog.get(name)
        failed = self._failed.get(name)
        left_s = failed.again_at - asyncio.get_running_loop().time() if failed else 0.0
        if failed and left_s > 0:
            raise FleetError(
                failed.error.reason, failed.error.message, retry_after_s=left_s, field=failed.error.field
            )
        return None

    async def obtain(self, name: str) -> LoadedModel:
        """The model, loaded if need be. Raises FleetError."""
        while True:
            model = self.get(name)
            if model is not None:
                return model
            # the entry may change meanwhile: then what was loaded is not kept, and this goes round again
            await asyncio.shield(self._loading.get(name) or self._start_loading(name))

    async def stop(self) -> None:
        tasks = [*self._keepers.values(), *self._loading.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_loading(self, name: str) -> asyncio.Task[LoadedModel]:
        task = self._loading[name] = asyncio.create_task(self._load_and_keep(self._catalog.get(name)))
        return task

    async def _load_and_keep(self, spec: common_pb2.ModelSpec) -> LoadedModel:
        """Its last step keeps what came of it: whoever finds the load ended must find that, too."""
        try:
            model = await self._load_now(spec)
        except FleetError as error:
            self._remember(spec.name, error)
            raise
        else:
            self._keep(model)
            return model
        finally:
            del self._loading[spec.name]

    async def _load_now(self, spec: common_pb2.ModelSpec) -> LoadedModel:
        try:
            model = await asyncio.to_thread(self._load, spec)
        except FleetError:
            raise
        except Exception as error:
            log.exception("tokenizer load crashed", model=spec.name)
            raise FleetError(
                common_pb2.REASON_INTERNAL, f"loading the tokenizer of {spec.name} failed: {error!r}"
            ) from error
        log.info("tokenizer loaded", model=spec.name, encoder=model.encoder.name)
        return model

    def _keep(self, model: LoadedModel) -> None:
        if self._catalog.models.get(model.spec.name) == model.spec:
            self._loaded[model.spec.name] = model
            self._failed.pop(model.spec.name, None)
            self.first_loaded.set()

    def _remember(self, name: str, error: FleetError) -> None:
        before = self._failed.get(name)
        pause_s = min(before.pause_s * 2, LONGEST_PAUSE_S) if before else FIRST_PAUSE_S
        self._failed[name] = _Failed(error, pause_s, asyncio.get_running_loop().time() + pause_s)
        log.error("tokenizer not loaded", model=name, error=error.message, retry_after_s=pause_s)

    def _catalog_changed(self) -> None:
        for name, model in tuple(self._loaded.items()):
            if self._catalog.models.get(name) != model.spec:
                del self._loaded[name]
        self._failed.clear()
        for name in self._wanted():
            if name not in self._keepers and name not in self._loaded:
                self._keepers[name] = asyncio.create_task(self._keep_trying(name))

    def _wanted(self) -> list[str]:
        """The warm models; without any the first one, since a tokenizer with no model is not ready."""
        models = self._catalog.models
        warm = [name for name, spec in models.items() if spec.policy == common_pb2.ModelSpec.POLICY_WARM]
        return warm or list(models)[:1]

    async def _keep_trying(self, name: str) -> None:
        try:
            while name in self._catalog.models and name not in self._loaded:
                try:
                    await self.obtain(name)
                except FleetError as error:
                    await asyncio.sleep(max(error.retry_after_s, FIRST_PAUSE_S))
        finally:
            del self._keepers[name]
