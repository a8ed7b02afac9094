"""The connection to an engine server: whether it can work, what it answers, and that it is gone.

Ready is what the standard health service says (`grpc.health.v1`), since a servicer's own health check may
already be content while the engine warms up; only a server without that service is asked in its own words.
No keepalive pings are sent: a gRPC server drops clients that ping more often than it was told to allow, and
this server was told nothing about us. Asking for its health does the same, and more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.grpc_host import MAX_MESSAGE_BYTES
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import load_failed
from tokenfleet.worker.engines.remote.arguments import RemoteArguments

_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_ASK_EVERY_S = 0.25
_TELL_EVERY_S = 10.0
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # what an attempt may take, and handshakes take their time
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
]
_LATE = grpc.StatusCode.DEADLINE_EXCEEDED.name
_LOST = (
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN,
)

log = get_logger(__name__)


class Server:
    """One attachment. `service` is the full name of the engine's gRPC service."""

    def __init__(self, arguments: RemoteArguments, service: str) -> None:
        """Raises FleetError when a file that the arguments name cannot be read."""
        self.address = arguments.address
        self._arguments = arguments
        self._service = service
        self._channel = _open_channel(arguments)
        self._has_health = True
        self.own_health: Callable[[], Awaitable[str]] | None = None  # "" or why not; for want of the standard

    def stream(self, method: str, request: Any, response: Any) -> Any:
        """The callable behind a server stream; `request` and `response` are message classes."""
        return self._channel.unary_stream(
            f"/{self._service}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

    async def ask(self, method: str, request: Any, response: Any, timeout_s: float = 0.0) -> Any:
        """One answer. Raises AioRpcError."""
        return await self._ask(
            f"/{self._service}/{method}", request, response, timeout_s or self._arguments.call_timeout_s
        )

    async def not_ready(self) -> str:
        """Why it cannot work now; empty: it can."""
        try:
            if self._has_health:
                request = health_pb2.HealthCheckRequest(service=self._service)
                answer = await self._ask(
                    _HEALTH, request, health_pb2.HealthCheckResponse, self._arguments.call_timeout_s
                )
                return "" if answer.status == _SERVING else "it says that it is not serving"
            return "" if self.own_health is None else await self.own_health()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED and self._has_health:
                self._has_health = False
                return await self.not_ready()
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return f"it serves no {self._service}: is `dialect` right?"
            return in_words(error)

    async def until_ready(self) -> None:
        """Raises FleetError when it is not within the time to attach."""
        began = told = time.monotonic()
        deadline = began + self._arguments.attach_timeout_s
        while why := await self.not_ready():
            now = time.monotonic()
            if now > deadline:
                raise load_failed(
                    f"engine remote: no engine server at {self.address} within "
                    f"{self._arguments.attach_timeout_s:g} s: {why}"
                )
            if now - told > _TELL_EVERY_S:
                told = now
                log.info(
                    "waiting for the engine server", address=self.address, seconds=int(now - began), why=why
                )
            await asyncio.sleep(_ASK_EVERY_S)

    async def until_lost(self) -> str:
        """Returns, with the reason, when the connection breaks or the server says that it cannot work."""
        connection = asyncio.create_task(self._until_disconnected())
        health = asyncio.create_task(self._until_unhealthy())
        try:
            done, _ = await asyncio.wait((connection, health), return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            connection.cancel()
            health.cancel()
            await asyncio.gather(connection, health, return_exceptions=True)

    async def close(self) -> None:
        """Cancels what runs on it."""
        await self._channel.close()

    async def _ask(self, path: str, request: Any, response: Any, timeout_s: float) -> Any:
        call = self._channel.unary_unary(
            path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        return await call(request, timeout=timeout_s)

    async def _until_disconnected(self) -> str:
        while (state := self._channel.get_state(try_to_connect=True)) not in _LOST:
            await self._channel.wait_for_state_change(state)
        return "the connection broke"

    async def _until_unhealthy(self) -> str:
        """An answer that is late once may be due to load, twice is too late."""
        late = False
        while True:
            await asyncio.sleep(self._arguments.health_interval_s)
            why = await self.not_ready()
            if why and (late or not why.startswith(_LATE)):
                return why
            late = bool(why)


def in_words(error: grpc.aio.AioRpcError) -> str:
    """A failed call as people read it."""
    details = (error.details() or "").strip()
    return f"{error.code().name}: {details}" if details else str(error.code().name)


def failure_of(error: grpc.aio.AioRpcError) -> FleetError:
    """What a sequence whose call failed ends with: where its request was wrong, no other engine helps."""
    words = f"engine remote: {in_words(error)}"
    if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE):
        return FleetError(common_pb2.REASON_INVALID_ARGUMENT, words)
    if "out of memory" in words.lower():
        return FleetError(common_pb2.REASON_OUT_OF_MEMORY, words)
    return FleetError(common_pb2.REASON_ENGINE_FAILED, words)


def _open_channel(arguments: RemoteArguments) -> grpc.aio.Channel:
    tls = arguments.tls
    if tls is None:
        return grpc.aio.insecure_channel(arguments.address, options=_OPTIONS)
    files = {"ca_file": tls.ca_file, "key_file": tls.key_file, "cert_file": tls.cert_file}
    try:
        content = {name: path.read_bytes() if path else None for name, path in files.items()}
        token = arguments.token_file.read_text().strip() if arguments.token_file else ""
    except OSError as error:
        raise load_failed(f"engine remote: cannot read {error.filename}: {error.strerror}") from error
    credentials = grpc.ssl_channel_credentials(content["ca_file"], content["key_file"], content["cert_file"])
    if token:
        bearer = grpc.access_token_call_credentials(token)
        credentials = grpc.composite_channel_credentials(credentials, bearer)
    options = list[tuple[str, Any]](_OPTIONS)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return grpc.aio.secure_channel(arguments.address, credentials, options=options)
