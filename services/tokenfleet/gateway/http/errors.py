"""Fleet errors as OpenAI's clients expect them: an HTTP status and `{"error": {…}}`."""

from __future__ import annotations

import math
from typing import Any

from tokenfleet.runtime.errors import FleetError, reason_name
from tokenfleet.v1 import common_pb2 as pb

_STATUS: dict[int, int] = {
    pb.REASON_INVALID_ARGUMENT: 400,
    pb.REASON_CONTEXT_LENGTH_EXCEEDED: 400,
    pb.REASON_UNSUPPORTED: 400,
    pb.REASON_UNAUTHENTICATED: 401,
    pb.REASON_PERMISSION_DENIED: 403,
    pb.REASON_MODEL_NOT_FOUND: 404,
    pb.REASON_BUSY: 409,
    pb.REASON_QUOTA_EXCEEDED: 429,
    pb.REASON_QUEUE_FULL: 429,
    pb.REASON_CANCELLED: 499,
    pb.REASON_NO_WORKER: 503,
    pb.REASON_DRAINING: 503,
    pb.REASON_ENGINE_FAILED: 503,
    pb.REASON_OUT_OF_MEMORY: 503,
    pb.REASON_WORKER_LOST: 503,
    pb.REASON_RESUME_IMPOSSIBLE: 503,
    pb.REASON_LOAD_FAILED: 503,
    pb.REASON_NOT_RESIDENT: 503,
    pb.REASON_DEADLINE_EXCEEDED: 504,
}

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}

# Where OpenAI has a name of its own for the same thing.
_CODES = {
    pb.REASON_MODEL_NOT_FOUND: "model_not_found",
    pb.REASON_CONTEXT_LENGTH_EXCEEDED: "context_length_exceeded",
    pb.REASON_INVALID_ARGUMENT: "invalid_value",
    pb.REASON_UNAUTHENTICATED: "invalid_api_key",
}


class HttpError(FleetError):
    """An error of HTTP itself, with a status and a code that no reason of the fleet has."""

    def __init__(
        self, status: int, code: str, message: str, *, field: str = "", retry_after_s: float = 0.0
    ) -> None:
        super().__init__(pb.REASON_INVALID_ARGUMENT, message, field=field, retry_after_s=retry_after_s)
        self.status = status
        self.code = code


def status_of(error: FleetError) -> int:
    if isinstance(error, HttpError):
        return error.status
    return _STATUS.get(error.reason, 500)


def error_code(error: FleetError) -> str:
    """What programs should look at: the stable reason, by OpenAI's name where there is one."""
    if isinstance(error, HttpError):
        return error.code
    return _CODES.get(error.reason, reason_name(error.reason))


def error_body(error: FleetError) -> dict[str, Any]:
    """OpenAI's error object; beside what OpenAI has, how much memory is missing where that is what lacks."""
    status = status_of(error)
    detail: dict[str, Any] = {
        "message": error.message,
        "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        "param": error.field or None,
        "code": error_code(error),
    }
    if error.missing_bytes:
        detail["missing_bytes"] = error.missing_bytes
    return {"error": detail}


def error_headers(error: FleetError) -> list[tuple[bytes, bytes]]:
    """Retry-After in whole seconds, rounded up, where there is advice; how to log in where one has to."""
    if error.reason == pb.REASON_UNAUTHENTICATED:
        return [(b"www-authenticate", b"Bearer")]
    if error.retry_after_s <= 0:
        return []
    return [(b"retry-after", str(math.ceil(error.retry_after_s)).encode())]


def invalid(field: str, message: str) -> FleetError:
    return FleetError(pb.REASON_INVALID_ARGUMENT, message, field=field)
