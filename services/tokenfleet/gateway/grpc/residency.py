"""Which models are loaded somewhere, as the model-loader last said.

Only listings want to know, so it is asked when a client asks, and not more than once a second however many
do. While the loader is away, what it said last is the best that is known.
"""

from __future__ import annotations

import asyncio

import grpc

from tokenfleet.runtime.grpc_host import PeerChannel
from tokenfleet.runtime.roles import MODEL_LOADER
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import model_loader_pb2, model_loader_pb2_grpc

FRESH_S = 1.0
PATIENCE_S = 0.5
READY = "ready"

log = get_logger(__name__)


class Residency:
    """Asks one loader; `stop` closes the channel."""

    def __init__(self, loader: str) -> None:
        self._loader = loader
        self._channel = PeerChannel(loader, MODEL_LOADER)
        self._asking: asyncio.Task[None] | None = None
        self._resident: frozenset[str] = frozenset()
        self._asked_at = float("-inf")

    async def resident(self) -> frozenset[str]:
        """Names of models that some worker holds ready."""
        now = asyncio.get_running_loop().time()
        if self._asking is None and now - self._asked_at >= FRESH_S:
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask())
        if self._asking is not None:
            await asyncio.shield(self._asking)
        return self._resident

    async def stop(self) -> None:
        await self._channel.close()

    async def _ask(self) -> None:
        stub = model_loader_pb2_grpc.ModelLoaderStub(self._channel.get())
        request = model_loader_pb2.ListResidencyRequest()
        try:
            answer = await stub.ListResidency(request, timeout=PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            log.warning("residency unknown", loader=self._loader, code=error.code().name)
        else:
            self._resident = frozenset(
                model.spec.name
                for model in answer.models
                if any(place.state == READY for place in model.places)
            )
        finally:
            self._asking = None
