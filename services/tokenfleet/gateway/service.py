"""The gateway's process: its links, its HTTP and gRPC servers, and the order in which they stop.

On SIGTERM readiness goes first. Load balancers learn of that late, so connections are accepted for a while
yet; then no more are, and running answers finish within the grace; what is left is cut off with a typed
event.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import uuid
from collections.abc import Iterator

import uvicorn
from prometheus_client import REGISTRY, CollectorRegistry, Counter

from tokenfleet.gateway.api_keys.keyring import Keyring
from tokenfleet.gateway.api_keys.keys_file import KeysFileError
from tokenfleet.gateway.core import Gateway
from tokenfleet.gateway.edge_tls import edge_tls
from tokenfleet.gateway.generator import Generator
from tokenfleet.gateway.grpc import SERVICE, InferenceServer
from tokenfleet.gateway.http.app import HttpApp
from tokenfleet.gateway.http.connection import connection_class
from tokenfleet.gateway.http.guard import Rules
from tokenfleet.gateway.http.headers import Origins
from tokenfleet.gateway.http.limits import Limits
from tokenfleet.gateway.http.websocket_connection import websocket_class
from tokenfleet.gateway.loader_client import LoaderClient
from tokenfleet.gateway.metrics import GatewayMetrics
from tokenfleet.gateway.router_client import RouterClient
from tokenfleet.gateway.settings import GatewaySettings
from tokenfleet.gateway.tokenizer_pool import TokenizerPool
from tokenfleet.gateway.worker_link import WorkerLinks
from tokenfleet.gateway.write_batch import WriteBatch
from tokenfleet.runtime.catalog import CatalogWatch
from tokenfleet.runtime.discovery import Discovery, OwnZone
from tokenfleet.runtime.grpc_host import GrpcHost
from tokenfleet.runtime.lifecycle import Lifecycle, StartupError, freeze_heap
from tokenfleet.runtime.metrics import serve_metrics
from tokenfleet.runtime.settings import split_address
from tokenfleet.runtime.telemetry import get_logger

READINESS_POLL_S = 0.1

log = get_logger(__name__)


class _HttpServer(uvicorn.Server):
    """uvicorn's server, which here neither owns the signals nor the logs."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class GatewayService:
    """Builds the parts, runs them, and stops them in order."""

    def __init__(self, settings: GatewaySettings, registry: CollectorRegistry = REGISTRY) -> None:
        self._settings = settings
        self._registry = registry
        gateway_id = f"gateway-{uuid.uuid4().hex[:12]}"
        metrics = GatewayMetrics(registry)
        self._catalog = CatalogWatch(settings.loader)
        self._tokenizers = TokenizerPool(frames=settings.frames)
        self._router = RouterClient(gateway_id, metrics, frames=settings.frames)
        self._zone = OwnZone(settings.zone)
        self._discoveries = (
            Discovery(settings.tokenizers, self._tokenizers),
            Discovery(settings.routers, self._router),
        )
        writes = WriteBatch()
        self._workers = WorkerLinks(metrics, writes, gateway_id, frames=settings.frames)
        generator = Generator(self._router, self._workers, metrics, settings.max_attempts)
        self._keys = _keyring(settings)
        self._loader = LoaderClient(settings.loader)
        self._edge = edge_tls(settings)
        self._gateway = Gateway(
            settings,
            self._catalog,
            self._tokenizers,
            generator,
            metrics,
            writes,
            keys=self._keys,
            zone=self._zone,
            loader=self._loader,
        )
        self._inference = InferenceServer(self._gateway)
        self._stopping = False
        self.http_port = 0
        self.grpc_port = 0

    async def run(self, lifecycle: Lifecycle) -> None:
        settings = self._settings
        http = self._http_server()
        listener = _bind(settings.http_listen, settings.unsent_bytes)
        self.http_port = listener.getsockname()[1]
        host = GrpcHost(
            SERVICE,
            self._inference.register,
            listen=settings.listen,
            reflection=settings.reflection,
            max_message_bytes=settings.max_body_bytes,
            public=True,
            credentials=self._edge.grpc_credentials() if self._edge else None,
        )
        self.grpc_port = await host.start()
        metrics_port = serve_metrics(settings.metrics_listen, self._registry, lambda: host.ready)
        await self._catalog.start()
        self._keys.start()
        if self._edge is not None:
            self._edge.start()
        self._zone.start()
        for discovery in self._discoveries:
            discovery.start()
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        freeze_heap()
        log.info("serving", http=self.http_port, grpc=self.grpc_port, metrics=metrics_port)
        await self._follow_readiness(host, lifecycle, serving)
        self._stopping = True
        await host.set_ready(False)
        if settings.shutdown_delay_s:
            log.info("not ready, still accepting", seconds=settings.shutdown_delay_s)
            await asyncio.sleep(settings.shutdown_delay_s)
        http.should_exit = True
        await asyncio.gather(serving, self._inference.stop(host, settings.grace_s))
        await asyncio.gather(self._zone.stop(), *(discovery.stop() for discovery in self._discoveries))
        await asyncio.gather(self._tokenizers.stop(), self._router.stop(), self._workers.close())
        if self._edge is not None:
            await self._edge.stop()
        await asyncio.gather(self._catalog.stop(), self._keys.stop(), self._loader.stop())

    def ready(self) -> dict[str, bool]:
        """What a request needs, part by part."""
        return {
            "accepting": not self._stopping,
            "catalog": self._catalog.first.is_set(),
            "tokenizers": self._tokenizers.ready,
            "router": self._router.ready,
        }

    async def _follow_readiness(
        self, host: GrpcHost, lifecycle: Lifecycle, serving: asyncio.Task[None]
    ) -> None:
        """Keeps gRPC health equal to `ready` until the process is told to stop."""
        known = False
        while not lifecycle.stopping.is_set():
            if serving.done():
                await serving
                raise StartupError("the HTTP server ended by itself")
            ready = all(self.ready().values())
            if ready != known:
                known = ready
                await host.set_ready(ready)
                log.info("readiness", **self.ready())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READINESS_POLL_S):
                    await lifecycle.stopping.wait()

    def _http_server(self) -> uvicorn.Server:
        settings, rules, edge = self._settings, self._rules(), self._edge
        config = uvicorn.Config(
            HttpApp(self._gateway, self.ready, self._registry),
            http=connection_class(rules),
            ws=websocket_class(rules),
            ssl_context_factory=(lambda config, default: edge.context) if edge else None,
            ws_max_size=settings.max_body_bytes,
            ws_ping_interval=settings.ping_interval_s,
            ws_ping_timeout=settings.ping_timeout_s,
            ws_per_message_deflate=False,
            proxy_headers=False,
            lifespan="off",
            log_config=None,
            log_level="warning",  # what clients do is no news, however often they do it
            access_log=False,
            date_header=False,
            server_header=False,
            backlog=4096,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=max(1, round(settings.grace_s)),
        )
        return _HttpServer(config)

    def _rules(self) -> Rules:
        refused = Counter(
            "tokenfleet_gateway_refused",
            "Clients turned away before anything else heard of them",
            ["code"],
            registry=self._registry,
        )
        return Rules(
            Limits.of(self._settings),
            Origins(self._settings.allowed_origins),
            lambda code: refused.labels(code).inc(),
            lambda: self._stopping,
        )


def _keyring(settings: GatewaySettings) -> Keyring:
    try:
        keys = Keyring(settings.api_keys_file, settings.reload_poll_s)
    except KeysFileError as error:
        raise StartupError(f"--api-keys-file: {error}") from error
    exposed = [each for each in (settings.http_listen, settings.listen) if not _is_loopback(each)]
    if exposed and not keys.required:
        log.warning("anybody who can reach this gateway may use it: set --api-keys-file", listen=exposed)
    return keys


def _is_loopback(address: str) -> bool:
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(address: str, unsent_bytes: int) -> socket.socket:
    """A listening socket that several gateway processes of a pod can share.

    Its connections inherit the bound on unsent bytes. Without one the kernel takes megabytes for a client
    that does not read, which count as the pod's memory, before the gateway hears that anything is slow.
    """
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent_bytes)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartupError(
            f"cannot listen on {address}: {error.strerror}. Free the port, or choose one with --http-listen"
        ) from error
    listener.setblocking(False)
    return listener
