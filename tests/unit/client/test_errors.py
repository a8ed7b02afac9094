"""Statuses of calls as errors that say what to do."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tokenfleet import client
from tokenfleet.client.errors import FleetError, from_call
from tokenfleet.runtime import errors as server
from tokenfleet.v1 import common_pb2

OF_REASON = {
    "INVALID_ARGUMENT": client.InvalidRequest,
    "MODEL_NOT_FOUND": client.ModelNotFound,
    "CONTEXT_LENGTH_EXCEEDED": client.ContextTooLong,
    "UNSUPPORTED": client.Unsupported,
    "UNAUTHENTICATED": client.Unauthenticated,
    "PERMISSION_DENIED": client.PermissionDenied,
    "QUOTA_EXCEEDED": client.Overloaded,
    "QUEUE_FULL": client.Overloaded,
    "NO_WORKER": client.Unavailable,
    "NOT_RESIDENT": client.Unavailable,
    "DRAINING": client.Unavailable,
    "DEADLINE_EXCEEDED": client.DeadlineExceeded,
    "CANCELLED": client.Unavailable,
    "ENGINE_FAILED": client.Unavailable,
    "OUT_OF_MEMORY": client.Overloaded,
    "WORKER_LOST": client.Unavailable,
    "RESUME_IMPOSSIBLE": client.StreamBroken,
    "LOAD_FAILED": client.Unavailable,
    "SLOW_CONSUMER": client.ReadTooSlowly,
    "INTERNAL": client.ServerError,
    "BUSY": client.Unavailable,
}
# What an answer that has begun can still end with and not be cut off.
NOT_BREAKING = (
    client.InvalidRequest,
    client.ModelNotFound,
    client.Unauthenticated,
    client.PermissionDenied,
    client.DeadlineExceeded,
    client.StreamBroken,
)


def received(error: server.FleetError, **how: Any) -> FleetError:
    """The server's error as the client gets it."""
    status = rpc_status.to_status(server.to_status(error))
    trailers = [*status.trailing_metadata, ("x-request-id", "r-1"), ("other", "x")]
    return from_call(status.code, status.details, trailers, **({"begun": False, "timeout_s": None} | how))


def test_every_reason_is_covered() -> None:
    reasons = {name.removeprefix("REASON_") for name in common_pb2.Reason.keys()}  # noqa: SIM118
    assert OF_REASON.keys() == reasons - {"UNSPECIFIED"}


@pytest.mark.parametrize("name", OF_REASON)
@pytest.mark.parametrize("begun", [False, True])
def test_each_reason_has_its_error(name: str, begun: bool) -> None:
    reason = common_pb2.Reason.Value(f"REASON_{name}")
    sent = server.FleetError(reason, "what happened", retry_after_s=1.25, field="f", missing_bytes=7)
    error = received(sent, begun=begun)
    expected = OF_REASON[name]
    if begun and not issubclass(expected, NOT_BREAKING):
        expected = client.StreamBroken
    assert type(error) is expected
    assert (error.message, error.reason, error.retry_after_s) == ("what happened", name.lower(), 1.25)
    assert (error.field, error.request_id, error.code) == ("f", "r-1", sent.status_code)
    assert error.missing_bytes == 7
    assert str(error) == "what happened"
    assert error.remedy


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_a_status_without_details_is_judged_by_its_code(code: grpc.StatusCode) -> None:
    error = from_call(code, "", (), begun=False, timeout_s=None)
    assert type(error) is not FleetError
    assert error.code is code
    assert error.message


def test_a_deadline_that_passed_here_says_how_long_it_was() -> None:
    error = from_call(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", (), begun=True, timeout_s=2.5)
    assert type(error) is client.DeadlineExceeded
    assert "2.5 s" in error.message


def test_grpcs_own_limit_is_the_requests_fault() -> None:
    details = "CLIENT: Sent message larger than max (20000000 vs. 16777216)"
    error = from_call(grpc.StatusCode.RESOURCE_EXHAUSTED, details, (), begun=False, timeout_s=None)
    assert type(error) is client.InvalidRequest


def test_a_reason_of_a_newer_server_is_judged_by_its_code() -> None:
    status = server.to_status(server.FleetError(common_pb2.REASON_QUEUE_FULL, "m"))
    info = error_details_pb2.ErrorInfo(reason="TOO_HOT", domain="tokenfleet")
    status.details[0].Pack(info)
    trailers = [("grpc-status-details-bin", status.SerializeToString())]
    error = from_call(grpc.StatusCode.RESOURCE_EXHAUSTED, "m", trailers, begun=False, timeout_s=None)
    assert type(error) is client.Overloaded
    assert error.reason == "too_hot"
