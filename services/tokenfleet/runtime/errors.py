"""One typed error from the place where it happens to the client's screen.

A service raises `FleetError`; on the wire it is a `Failure` inside a stream, or a gRPC status with
`google.rpc` details at the end of a call. Each `Reason` has one gRPC code, so that a client which knows only
gRPC still does the right thing (retry UNAVAILABLE, back off on RESOURCE_EXHAUSTED), and nobody has to parse
messages.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tokenfleet.v1 import common_pb2

DOMAIN = "tokenfleet"

_CODES: dict[int, grpc.StatusCode] = {
    common_pb2.REASON_INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    common_pb2.REASON_MODEL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    common_pb2.REASON_CONTEXT_LENGTH_EXCEEDED: grpc.StatusCode.INVALID_ARGUMENT,
    common_pb2.REASON_UNSUPPORTED: grpc.StatusCode.INVALID_ARGUMENT,
    common_pb2.REASON_UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    common_pb2.REASON_PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    common_pb2.REASON_QUOTA_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    common_pb2.REASON_QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    common_pb2.REASON_NO_WORKER: grpc.StatusCode.UNAVAILABLE,
    common_pb2.REASON_NOT_RESIDENT: grpc.StatusCode.FAILED_PRECONDITION,
    common_pb2.REASON_DRAINING: grpc.StatusCode.UNAVAILABLE,
    common_pb2.REASON_DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    common_pb2.REASON_CANCELLED: grpc.StatusCode.CANCELLED,
    common_pb2.REASON_ENGINE_FAILED: grpc.StatusCode.UNAVAILABLE,
    common_pb2.REASON_OUT_OF_MEMORY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    common_pb2.REASON_WORKER_LOST: grpc.StatusCode.UNAVAILABLE,
    common_pb2.REASON_RESUME_IMPOSSIBLE: grpc.StatusCode.ABORTED,
    common_pb2.REASON_LOAD_FAILED: grpc.StatusCode.UNAVAILABLE,
    common_pb2.REASON_SLOW_CONSUMER: grpc.StatusCode.ABORTED,
    common_pb2.REASON_INTERNAL: grpc.StatusCode.INTERNAL,
    common_pb2.REASON_BUSY: grpc.StatusCode.FAILED_PRECONDITION,
}


class FleetError(Exception):
    """An error with a stable reason, a message for people, and advice on when to retry."""

    def __init__(
        self,
        reason: common_pb2.Reason.ValueType,
        message: str,
        *,
        retry_after_s: float = 0.0,
        field: str = "",
        missing_bytes: int = 0,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.field = field
        self.missing_bytes = missing_bytes  # of memory, where that is what lacks

    @property
    def reason_name(self) -> str:
        """The stable name without its prefix, as metrics and clients spell it: `queue_full`."""
        return reason_name(self.reason)

    @property
    def status_code(self) -> grpc.StatusCode:
        return _CODES.get(self.reason, grpc.StatusCode.UNKNOWN)

    def to_failure(self) -> common_pb2.Failure:
        return common_pb2.Failure(
            reason=self.reason,
            message=self.message,
            retry_after_ms=round(self.retry_after_s * 1000),
            field=self.field,
            missing_bytes=self.missing_bytes,
        )

    @classmethod
    def from_failure(cls, failure: common_pb2.Failure) -> FleetError:
        return cls(
            failure.reason,
            failure.message,
            retry_after_s=failure.retry_after_ms / 1000,
            field=failure.field,
            missing_bytes=failure.missing_bytes,
        )


def reason_name(reason: common_pb2.Reason.ValueType) -> str:
    """`REASON_QUEUE_FULL` as `queue_full`."""
    return common_pb2.Reason.Name(reason).removeprefix("REASON_").lower()


def to_status(error: FleetError) -> status_pb2.Status:
    """The error as a rich gRPC status: ErrorInfo always, RetryInfo when there is advice."""
    info = error_details_pb2.ErrorInfo(reason=reason_name(error.reason).upper(), domain=DOMAIN)
    if error.field:
        info.metadata["field"] = error.field
    if error.missing_bytes:
        info.metadata["missing_bytes"] = str(error.missing_bytes)
    details = [any_pb2.Any()]
    details[0].Pack(info)
    if error.retry_after_s > 0:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        details.append(packed)
    code: int = code_pb2.Code.Value(error.status_code.name)
    return status_pb2.Status(code=code, message=error.message, details=details)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: FleetError) -> NoReturn:
    """Ends the call with the error's status and details."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort returns by raising")


def from_rpc_error(error: grpc.aio.AioRpcError) -> FleetError:
    """The typed error inside a failed call; an untyped one becomes what its code says."""
    metadata = error.trailing_metadata()
    for key, value in metadata or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            return _from_status(status_pb2.Status.FromString(value), error)
    return FleetError(_untyped_reason(error.code()), error.details() or error.code().name)


def _from_status(status: status_pb2.Status, error: grpc.aio.AioRpcError) -> FleetError:
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    reason = _untyped_reason(error.code())
    for detail in status.details:
        if detail.Unpack(info):
            # somebody else's details (a proxy's), or those of a newer peer, say no more than the code
            if info.domain == DOMAIN and f"REASON_{info.reason}" in common_pb2.Reason.keys():  # noqa: SIM118
                reason = common_pb2.Reason.Value(f"REASON_{info.reason}")
        else:
            detail.Unpack(retry)
    return FleetError(
        reason,
        status.message,
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9,
        field=info.metadata.get("field", ""),
        missing_bytes=_whole(info.metadata.get("missing_bytes", "")),
    )


def _whole(number: str) -> int:
    return int(number) if number.isdecimal() else 0


def _untyped_reason(code: grpc.StatusCode) -> common_pb2.Reason.ValueType:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return common_pb2.REASON_DEADLINE_EXCEEDED
    if code is grpc.StatusCode.UNAVAILABLE:
        return common_pb2.REASON_WORKER_LOST
    if code is grpc.StatusCode.CANCELLED:
        return common_pb2.REASON_CANCELLED
    return common_pb2.REASON_INTERNAL
