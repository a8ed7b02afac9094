"""How a client reaches its gateways: names, balancing, retries, keys and certificates.

All of it is gRPC's own machinery, told what to do by a service config. Requests go round the gateways that
say they are ready. A call that fails before its first message is sent again, elsewhere where there is
elsewhere, after the pause that the server asks for or, without advice, a growing random one; and only as long
as most calls succeed, so that retries cannot keep an overloaded fleet overloaded.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tokenfleet import __version__
from tokenfleet.client.requests import MAX_MESSAGE_BYTES

SERVICE = "tokenfleet.v1.Inference"
MOST_ATTEMPTS = 5  # gRPC's own limit

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")


@dataclass(frozen=True)
class Tls:
    """Certificates, as PEM: bytes, or the path of a file."""

    root_certificates: bytes | str | Path | None = None  # None: those that gRPC comes with
    private_key: bytes | str | Path | None = None  # the client's own, for mutual TLS
    certificate_chain: bytes | str | Path | None = None
    server_name: str = ""  # what the server's certificate says, where that is not the target's name

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises ValueError when only one of private_key and certificate_chain is there."""
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("tls: private_key and certificate_chain go together: give both or neither")
        return grpc.ssl_channel_credentials(
            _pem(self.root_certificates), _pem(self.private_key), _pem(self.certificate_chain)
        )


@dataclass(frozen=True)
class Connection:
    """Everything that both kinds of client need to open a channel and to call."""

    target: str
    options: tuple[tuple[str, Any], ...]
    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str], ...]


def connection(
    targets: str | Sequence[str],
    *,
    api_key: str | None,
    tls: bool | Tls,
    attempts: int,
    keepalive_s: float,
) -> Connection:
    """Raises ValueError that names the argument and the remedy."""
    if not 1 <= attempts <= MOST_ATTEMPTS:
        raise ValueError(f"attempts: {attempts} is not within 1 to {MOST_ATTEMPTS}, where 1 means no retries")
    certificates = tls if isinstance(tls, Tls) else Tls()
    options = [
        ("grpc.service_config", json.dumps(service_config(attempts))),
        ("grpc.service_config_disable_resolution", 1),
        # a request must be kept until it is answered, or it cannot be sent again
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", round(keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.primary_user_agent", f"tokenfleet-python/{__version__}"),
    ]
    if certificates.server_name:
        options.append(("grpc.ssl_target_name_override", certificates.server_name))
    return Connection(
        target=target_of(targets),
        options=tuple(options),
        credentials=certificates.credentials() if tls else None,
        metadata=_authorization(api_key),
    )


def service_config(attempts: int) -> dict[str, Any]:
    """What gRPC shall do by itself, in its own words (`grpc/service_config`)."""
    method: dict[str, Any] = {"name": [{"service": SERVICE}]}
    if attempts > 1:
        method["retryPolicy"] = {
            "maxAttempts": attempts,
            "initialBackoff": "0.1s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            # CANCELLED is what a call gets that reaches a gateway in the moment in which it stops
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
        }
    return {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": SERVICE},
        "methodConfig": [method],
        # each failure takes a token, a success gives a tenth back; below half of them nothing is retried
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }


def target_of(targets: str | Sequence[str]) -> str:
    """The one name gRPC knows the gateways by."""
    addresses = [targets] if isinstance(targets, str) else list(targets)
    if not addresses:
        raise ValueError("targets is empty: give host:port of a gateway's gRPC port")
    if len(addresses) == 1 and addresses[0].startswith(_SCHEMES):
        return addresses[0]
    versions = {_ip_version(address) for address in addresses}
    if len(addresses) == 1:
        return f"dns:///{addresses[0]}"
    if len(versions) > 1 or None in versions:
        raise ValueError(
            f"targets: {', '.join(addresses)}: several targets must be all IPv4 or all IPv6 addresses; "
            "instead of several names give one DNS name that stands for all of them"
        )
    return f"ipv{versions.pop()}:{','.join(addresses)}"


def _ip_version(address: str) -> int | None:
    """4 or 6, or None for a name. Raises ValueError when it is no host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"targets: {address!r} is no address: write host:port, such as 127.0.0.1:8081")
    try:
        return ipaddress.ip_address(host.strip("[]")).version
    except ValueError:
        return None


def _authorization(api_key: str | None) -> tuple[tuple[str, str], ...]:
    if api_key is None:
        return ()
    if not api_key.isascii() or not api_key.isprintable() or not api_key.strip():
        raise ValueError("api_key: expected printable ASCII characters: is there a line break at its end?")
    return (("authorization", f"Bearer {api_key}"),)


def _pem(source: bytes | str | Path | None) -> bytes | None:
    return source if source is None or isinstance(source, bytes) else Path(source).read_bytes()
