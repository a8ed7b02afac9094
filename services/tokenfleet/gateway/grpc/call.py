"""The frame around every call: its deadline, its metrics, and what its client is told when it fails.

A failure before the first message leaves as a status without headers, which is what lets a client's gRPC
library retry it by itself. How long it should wait first is in the trailer that gRPC libraries obey; advice
to wait for long is given to the application instead, in `RetryInfo`, because nobody likes a call that seems
to hang.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, cast

import grpc
from grpc_status import rpc_status

from tokenfleet.gateway.fallback import late
from tokenfleet.gateway.http.sinks import Interruption
from tokenfleet.gateway.metrics import GatewayMetrics
from tokenfleet.gateway.sequence import Sequence as Answer
from tokenfleet.runtime.errors import FleetError, reason_name, to_status
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2 as pb

Context = grpc.aio.ServicerContext[Any, Any]

PUSHBACK_KEY = "grpc-retry-pushback-ms"
REQUEST_ID_KEY = "x-request-id"
LONGEST_PUSHBACK_S = 5.0
DO_NOT_RETRY = "-1"
# The answer would be the same a moment later.
_POINTLESS_TO_RETRY = frozenset({pb.REASON_LOAD_FAILED, pb.REASON_QUOTA_EXCEEDED})
# These clients are not told, since their libraries know already.
_GONE = FleetError(pb.REASON_CANCELLED, "the client left")
_LATE = FleetError(pb.REASON_DEADLINE_EXCEEDED, "the client's deadline passed")

log = get_logger(__name__)


class Call:
    """One call being served, as a context manager; `interruption` ends it from outside."""

    def __init__(
        self, context: Context, metrics: GatewayMetrics, timeout_s: float, running: set[Call]
    ) -> None:
        self._context = context
        self._running = running
        self._metrics = metrics
        # None where the client set no deadline, whatever the stubs say
        left = cast(float | None, context.time_remaining())
        self._timed_by_client = left is not None and left < timeout_s
        self._timeout_s = timeout_s if left is None else min(timeout_s, left)
        self._started = time.perf_counter()
        self.deadline = asyncio.get_running_loop().time() + self._timeout_s
        self.interruption = Interruption(None)
        self.request_id = ""
        self.sequences: Sequence[Answer] = ()

    async def __aenter__(self) -> Call:
        self._running.add(self)
        self._metrics.begun()
        self.interruption.__enter__()
        if not self._timed_by_client:
            self.interruption.expire_at(self.deadline, lambda: late(self.sequences, self._timeout_s))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._running.discard(self)
        self.interruption.__exit__()
        self.sequences = ()
        failure = self._failure(error)
        code = reason_name(failure.reason) if failure else "200"
        self._metrics.ended(code, time.perf_counter() - self._started)
        if failure is not None and failure not in (_GONE, _LATE):
            await self._abort(failure)

    def _failure(self, error: BaseException | None) -> FleetError | None:
        if error is None or isinstance(error, FleetError):
            return error
        if isinstance(error, asyncio.CancelledError):
            late = asyncio.get_running_loop().time() >= self.deadline
            return self.interruption.resolve() or (_LATE if late else _GONE)
        if isinstance(error, grpc.aio.InternalError):
            return _GONE  # a write failed, because there is nobody to write to
        log.error("call failed", request=self.request_id, exc_info=error)
        return FleetError(pb.REASON_INTERNAL, "internal error; the log has the details")

    async def _abort(self, failure: FleetError) -> None:
        status = rpc_status.to_status(to_status(failure))
        trailers = [*status.trailing_metadata, *_pushback(failure)]
        if self.request_id:
            trailers.append((REQUEST_ID_KEY, self.request_id))
        await self._context.abort(status.code, status.details, tuple(trailers))


def _pushback(failure: FleetError) -> list[tuple[str, str]]:
    """When to try again, for the client's gRPC library; without advice it backs off by its own rule."""
    if failure.reason in _POINTLESS_TO_RETRY or failure.retry_after_s > LONGEST_PUSHBACK_S:
        return [(PUSHBACK_KEY, DO_NOT_RETRY)]
    if failure.retry_after_s > 0:
        return [(PUSHBACK_KEY, str(round(failure.retry_after_s * 1000)))]
    return []
