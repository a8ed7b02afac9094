"""What the gateway can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tokenfleet.runtime.discovery import PeerTargets, ZoneName
from tokenfleet.runtime.settings import ServiceSettings, Targets


class GatewaySettings(ServiceSettings):
    """Durations in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="TOKENFLEET_GATEWAY_")

    http_listen: str = Field("127.0.0.1:8080", description="host:port of the OpenAI-compatible HTTP API")
    listen: str = Field("127.0.0.1:8081", description="host:port of gRPC")
    tokenizers: PeerTargets = Field(
        default_factory=list,
        description="the tokenizers: host:port, kubernetes://SERVICE:PORT or redis://HOST:PORT/0#NAME",
    )
    routers: PeerTargets = Field(
        default_factory=list,
        description="the routers: host:port, kubernetes://SERVICE:PORT or redis://HOST:PORT/0#NAME",
    )
    loader: str = Field("127.0.0.1:8085", description="host:port of the model-loader, for the catalog")
    api_keys_file: Path | None = Field(
        None, description="the API keys, one JSON object a line; none: everybody may use the gateway"
    )
    edge_tls_cert: Path | None = Field(
        None, description="certificate for clients, PEM; with its key, HTTP and gRPC are served over TLS only"
    )
    edge_tls_key: Path | None = Field(None, description="its key, PEM, unencrypted")
    edge_tls_client_ca: Path | None = Field(
        None, description="authorities of clients, PEM; given, a client needs a certificate of one of them"
    )
    zone: ZoneName = Field(
        "",
        description="this gateway's zone, in which its clients count as being; kubernetes://SERVICE looks it "
        "up in the endpoints of the gateway's own Service",
    )
    shutdown_delay_s: float = Field(
        0.0,
        ge=0,
        description="how long after SIGTERM connections are still accepted, readiness being down, until load "
        "balancers have looked",
    )
    request_timeout_s: float = Field(600.0, gt=0, description="deadline of a request that names none")
    decision_wait_s: float = Field(2.0, ge=0, description="how long response headers wait for a decision")
    max_attempts: int = Field(5, ge=1, description="failures in a row without a token before giving up")
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1024, description="largest request body or gRPC message")
    max_body_values: int = Field(
        200_000,
        ge=1024,
        description="numbers, lists and objects in a request body, and ids in a list of tokens",
    )
    max_body_strings: int = Field(60_000, ge=1024, description="strings and keys in a request body")
    max_choices: int = Field(16, ge=1, description="largest n of a request")
    client_buffer_bytes: int = Field(
        256 * 1024, ge=4096, description="text kept for a client that reads slowly before it is disconnected"
    )
    unsent_bytes: int = Field(
        16 * 1024,
        ge=4096,
        description="what the kernel keeps unsent for a client before its text is held back and merged",
    )
    keep_alive_s: int = Field(75, ge=1, description="how long an idle connection is kept")
    max_connections: int = Field(
        10_000, ge=1, description="client connections at once; more are answered with 503 and Retry-After"
    )
    max_pipelined: int = Field(16, ge=0, description="requests that may wait on a connection behind another")
    max_url_bytes: int = Field(8 * 1024, ge=256, description="longest URL of a request")
    max_headers: int = Field(100, ge=8, le=120, description="headers of a request")
    max_header_bytes: int = Field(32 * 1024, ge=1024, description="size of a request's line and headers")
    header_timeout_s: float = Field(
        10.0, gt=0, description="time from a request's first byte to the end of its headers"
    )
    body_timeout_s: float = Field(60.0, gt=0, description="time for a request's body to arrive")
    write_timeout_s: float = Field(
        60.0, gt=0, description="how long a client may read nothing before it is disconnected"
    )
    max_socket_requests: int = Field(64, ge=1, description="requests at once on one WebSocket")
    ping_interval_s: float = Field(20.0, gt=0, description="time between two pings on a WebSocket")
    ping_timeout_s: float = Field(
        20.0, gt=0, description="how long a WebSocket's answer to a ping may take before it is closed"
    )
    allowed_origins: Targets = Field(
        default_factory=lambda: ["localhost", "127.0.0.1", "[::1]"],
        description="pages that browsers may call from: host names, whole origins, or *",
    )
