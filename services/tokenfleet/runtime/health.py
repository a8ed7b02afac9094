"""The standard health service, whose watchers are told everything and then let go.

The servicer of `grpc_health` forgets all watchers of a name as soon as one of them leaves, and keeps watches
open while the server stops, so that one watcher makes every shutdown take its whole grace. Watching is how
the local fleet and gRPC's client-side health checks wait for a service; hence this one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tokenfleet.runtime.changes import Changes

_Status = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[Any, Any]


class HealthService(health_pb2_grpc.HealthServicer):
    """Status by name; owned by one event loop."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._changes = Changes()
        self._stopping = False

    def set(self, name: str, serving: bool) -> None:
        """Says whether `name` can work; without effect once `stop` was called."""
        if not self._stopping:
            self._serving[name] = serving
            self._changes.notify()

    def serving(self, name: str) -> bool:
        return self._serving.get(name, False)

    def stop(self) -> None:
        """Nothing serves any more: watchers hear it, and their calls end."""
        self._serving = dict.fromkeys(self._serving, False)
        self._stopping = True
        self._changes.notify()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> _Status:
        if request.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return _Status(status=self._status(request.service))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> AsyncIterator[_Status]:
        del context
        told = None
        while True:
            version, status = self._changes.version, self._status(request.service)
            if status != told:
                told = status
                yield _Status(status=status)
            elif self._stopping:
                return
            else:
                await self._changes.after(version)

    def _status(self, name: str) -> int:
        serving = self._serving.get(name)
        if serving is None:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if serving else _Status.NOT_SERVING
