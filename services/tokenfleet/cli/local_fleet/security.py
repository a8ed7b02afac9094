"""Keys and certificates of a local fleet, as the flags of its processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class FleetSecurity:
    """All off by default, as befits a fleet on the loopback interface."""

    api_keys: Path | None = None  # the gateway's keys file
    edge_cert: Path | None = None  # the gateway's public certificate, and its key
    edge_key: Path | None = None
    peers: Path | None = None  # folder for mutual TLS: ca.pem, and ROLE.pem and ROLE.key for each role

    @property
    def edge(self) -> bool:
        """Whether clients have to use TLS."""
        return self.edge_cert is not None

    def gateway_flags(self) -> tuple[str, ...]:
        given = {
            "--api-keys-file": self.api_keys,
            "--edge-tls-cert": self.edge_cert,
            "--edge-tls-key": self.edge_key,
        }
        return tuple(part for flag, path in given.items() if path is not None for part in (flag, str(path)))

    def peer_flags(self, role: str) -> tuple[str, ...]:
        if self.peers is None:
            return ()
        cert, key, ca = self.peers / f"{role}.pem", self.peers / f"{role}.key", self.peers / "ca.pem"
        return ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca", str(ca))
