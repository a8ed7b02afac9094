"""What can go wrong, named by how one recovers.

A program that calls a model wants to know one of few things: is the request at fault, should it wait, is the
answer it has cut off. The server's stable reason and its advice are in the error too, for logs and for finer
decisions. Nobody has to read messages, which may change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import grpc
from google.rpc import error_details_pb2, status_pb2

STATUS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"
# gRPC's own words for a message above the limit of either side; it has no code of its own for that.
_TOO_LARGE = "larger than max"


class FleetError(Exception):
    """Base of all errors of this package; `remedy` says what to do."""

    remedy: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: grpc.StatusCode | None = None,
        retry_after_s: float = 0.0,
        field: str = "",
        request_id: str = "",
        missing_bytes: int = 0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason  # the server's stable name, such as "queue_full"; "" when it gave none
        self.code = code  # None when the request was never sent
        self.retry_after_s = retry_after_s  # seconds; 0: no advice
        self.field = field  # of the request, where one is at fault
        self.missing_bytes = missing_bytes  # of memory, where no worker has enough for the model
        self.request_id = request_id  # for the operator, who finds the request in the logs by it


class InvalidRequest(FleetError):
    """The request is wrong, and will be wrong again."""

    remedy = "mend the field named in `field`"


class ContextTooLong(InvalidRequest):
    """Prompt and budget do not fit the model's context; the message has both lengths."""

    remedy = "shorten the prompt, lower max_tokens, or use a model with a longer context"


class Unsupported(InvalidRequest):
    """The model's engine lacks what was asked for."""

    remedy = "leave the option named in `field` out, or use another model"


class ModelNotFound(FleetError):
    """No model of that name."""

    remedy = "use a name that models() lists"


class Unauthenticated(FleetError):
    """The API key is missing or unknown."""

    remedy = "pass a valid api_key"


class PermissionDenied(FleetError):
    """The API key is known, but does not allow this."""

    remedy = "use a key that may do this, or ask the operator"


class Overloaded(FleetError):
    """The fleet, or this tenant's quota, has no room now; nothing was generated."""

    remedy = "send it again after retry_after_s, or use a lower rate"


class Unavailable(FleetError):
    """Nobody can serve it now, or the gateway cannot be reached; nothing was generated."""

    remedy = "send it again after retry_after_s; if it lasts, check the target and the fleet's state"


class DeadlineExceeded(FleetError):
    """Not done in time; what had arrived is valid."""

    remedy = "raise timeout, or ask for fewer tokens"


class StreamBroken(FleetError):
    """The answer broke off after it had begun; what had arrived is valid."""

    remedy = "ask again, or let the model continue from the text that arrived"


class ReadTooSlowly(StreamBroken):
    """More of the answer waited for this client than the gateway keeps."""

    remedy = "read faster: do slow work outside the loop over the stream"


class Cancelled(FleetError):
    """This program closed the stream or the client."""

    remedy = "nothing to do: it was asked for"


class ServerError(FleetError):
    """A fault of the server, or a server that is no tokenfleet gateway."""

    remedy = "check that the target is a gateway's gRPC port; report it with the request_id"


_BY_REASON: dict[str, type[FleetError]] = {
    "context_length_exceeded": ContextTooLong,
    "unsupported": Unsupported,
    "slow_consumer": ReadTooSlowly,
    "resume_impossible": StreamBroken,
}

_BY_CODE: dict[grpc.StatusCode, type[FleetError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: ModelNotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    # by the server, that is: it stops, or what is between does; see `Cancelled` for the client's own
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.FAILED_PRECONDITION: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.ABORTED: StreamBroken,
}

# After the first token these mean that the answer is cut off.
_BREAKING = (Overloaded, Unavailable, ServerError)


def from_call(
    code: grpc.StatusCode,
    details: str,
    trailers: Iterable[tuple[str, str | bytes]],
    *,
    begun: bool,
    timeout_s: float | None,
) -> FleetError:
    """The error of a failed call; `begun` when some of the answer had arrived."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    request_id = ""
    for key, value in trailers:
        if key == REQUEST_ID_KEY and isinstance(value, str):
            request_id = value
        elif key == STATUS_KEY and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                if not detail.Unpack(info):
                    detail.Unpack(retry)
    reason, missing = info.reason.lower(), info.metadata["missing_bytes"]
    kind = _kind(code, reason, details)
    if begun and kind in _BREAKING:
        kind = StreamBroken
    message = details or code.name
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not reason and timeout_s is not None:
        message = f"not done within {timeout_s:g} s"
    return kind(
        message,
        reason=reason,
        code=code,
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9,
        field=info.metadata["field"],
        request_id=request_id,
        missing_bytes=int(missing) if missing.isdecimal() else 0,
    )


def _kind(code: grpc.StatusCode, reason: str, details: str) -> type[FleetError]:
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not reason and _TOO_LARGE in details:
        return InvalidRequest
    return _BY_REASON.get(reason) or _BY_CODE.get(code, ServerError)
