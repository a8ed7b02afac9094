"""The catalog as every service but its owner sees it: followed over the wire, kept while the loader is away.

The model-loader alone reads the catalog file; the others follow `WatchCatalog`. What was learnt once stays
usable when the loader goes away, because a loader's restart must not turn known models into unknown ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.following import StreamFollower
from tokenfleet.runtime.roles import MODEL_LOADER
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2, model_loader_pb2, model_loader_pb2_grpc

log = get_logger(__name__)

# Names listed in the message about an unknown model.
_NAMES_SHOWN = 10


class CatalogWatch:
    """Follows one loader's catalog; `models` is replaced as a whole whenever it changes."""

    def __init__(self, loader_target: str) -> None:
        self.models: dict[str, common_pb2.ModelSpec] = {}
        self.revision = 0
        self.first = asyncio.Event()
        self.on_change: list[Callable[[], None]] = []
        self._target = loader_target
        self._connected = True  # until told otherwise: so that the first failure is logged, and only it
        self._follower = StreamFollower(
            loader_target,
            MODEL_LOADER,
            lambda channel: aiter(
                model_loader_pb2_grpc.ModelLoaderStub(channel).WatchCatalog(
                    model_loader_pb2.WatchCatalogRequest()
                )
            ),
            self._received,
            self._broken,
        )

    async def start(self) -> None:
        """Begins to follow; returns at once. Wait for `first` to know that a catalog arrived."""
        self._follower.start()

    async def stop(self) -> None:
        await self._follower.stop()

    def get(self, name: str) -> common_pb2.ModelSpec:
        """The entry of that name; raises FleetError when there is none, or when no catalog came yet."""
        spec = self.models.get(name)
        if spec is not None:
            return spec
        if not self.first.is_set():
            raise FleetError(
                common_pb2.REASON_NO_WORKER,
                f"the model catalog has not arrived yet from the model-loader at {self._target}",
                retry_after_s=1.0,
            )
        raise FleetError(
            common_pb2.REASON_MODEL_NOT_FOUND,
            f"the model {name!r} does not exist; {_describe(self.models)}",
            field="model",
        )

    def _received(self, response: model_loader_pb2.WatchCatalogResponse) -> None:
        self._connected = True
        models = {spec.name: spec for spec in response.models}
        self.revision = response.revision
        if self.first.is_set() and models == self.models:
            return
        self.models = models
        self.first.set()
        log.info("catalog", models=sorted(models), revision=response.revision)
        for call in tuple(self.on_change):
            call()

    def _broken(self, error: FleetError) -> None:
        if self._connected:
            log.warning(
                "catalog watch broken", loader=self._target, error=error.message, models_kept=len(self.models)
            )
        self._connected = False


def _describe(models: dict[str, common_pb2.ModelSpec]) -> str:
    if not models:
        return "the catalog is empty"
    shown = sorted(models)[:_NAMES_SHOWN]
    rest = len(models) - len(shown)
    return f"available: {', '.join(shown)}" + (f" and {rest} more" if rest else "")
