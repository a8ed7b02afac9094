"""A gRPC server as every service has it: health that tells live from ready, reflection where asked for.

Liveness is the health service's empty name: the process serves. Readiness is the name of the service itself
(`tokenfleet.v1.Router`): it can do its work now. Kubernetes probes them separately, so that a worker which
loads for minutes is alive and not ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tokenfleet.runtime.health import HealthService
from tokenfleet.runtime.lifecycle import StartupError
from tokenfleet.runtime.settings import split_address
from tokenfleet.runtime.tls import own_identity

MAX_MESSAGE_BYTES = 16 * 1024 * 1024

SERVER_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
]

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # in spite of its name, how long an attempt to connect may take, the handshakes included
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
]


# Calls may go on for so long on the channel of an earlier certificate.
RETIREMENT_S = 600.0


def open_channel(target: str, role: str) -> grpc.aio.Channel:
    """A channel to `host:port` with the fleet's keepalive and reconnect settings.

    Where this process has an identity, the peer has to prove that it is one in that role.
    """
    identity = own_identity()
    if identity is None:
        return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
    expected = ("grpc.ssl_target_name_override", identity.name_of(role))
    return grpc.aio.secure_channel(
        target, identity.channel_credentials(), options=[*CHANNEL_OPTIONS, expected]
    )


class PeerChannel:
    """A channel for calls now and then, which goes on when this process gets another certificate."""

    def __init__(self, target: str, role: str) -> None:
        self._target = target
        self._role = role
        self._channel: grpc.aio.Channel | None = None
        self._credentials: grpc.ChannelCredentials | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    def get(self) -> grpc.aio.Channel:
        """The channel to call on now; do not keep it."""
        identity = own_identity()
        credentials = identity.channel_credentials() if identity is not None else None
        if self._channel is None or credentials is not self._credentials:
            if self._channel is not None:
                retiring = asyncio.create_task(self._channel.close(RETIREMENT_S))
                self._retiring.add(retiring)
                retiring.add_done_callback(self._retiring.discard)
            self._channel, self._credentials = open_channel(self._target, self._role), credentials
        return self._channel

    async def close(self) -> None:
        for retiring in self._retiring:
            retiring.cancel()
        if self._channel is not None:
            await self._channel.close()


class GrpcHost:
    """One server, its health, its address. `service` is the full name whose health means ready.

    With `reuse_port` several processes can serve on the same port. A server for peers has this process's
    identity, where there is one; one that is `public` has the `credentials` given, or talks in the clear.
    """

    def __init__(
        self,
        service: str,
        register: Callable[[grpc.aio.Server], None],
        *,
        listen: str,
        reflection: bool = False,
        reuse_port: bool = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        public: bool = False,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        identity = own_identity()
        if identity is not None and not public:
            credentials = identity.server_credentials()
        self._credentials = credentials
        self._service = service
        self._listen = listen
        options = [
            ("grpc.so_reuseport", int(reuse_port)),
            ("grpc.max_receive_message_length", max_message_bytes),
        ]
        self._server = grpc.aio.server(options=[*SERVER_OPTIONS, *options])
        self._health = HealthService()
        register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflection:
            _enable_reflection(self._server, service)
        self.port = 0

    async def start(self) -> int:
        """Binds and serves; live at once, ready only after `set_ready`. Raises StartupError if taken."""
        host, port = split_address(self._listen)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise StartupError(
                f"cannot listen on {self._listen}: is another process using the port? "
                "Stop it, or choose another with --listen host:port"
            ) from error
        await self._server.start()
        self._health.set("", True)
        self._health.set(self._service, False)
        return self.port

    @property
    def ready(self) -> bool:
        return self._health.serving(self._service)

    async def set_ready(self, ready: bool) -> None:
        self._health.set(self._service, ready)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls at once and ends running ones after `grace_s`."""
        self._health.stop()
        await self._server.stop(grace_s)
        await asyncio.sleep(0)


def _enable_reflection(server: grpc.aio.Server, service: str) -> None:
    from grpc_reflection.v1alpha import reflection

    names = (service, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
