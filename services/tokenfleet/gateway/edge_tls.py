"""The gateway's public certificate, for HTTP and for gRPC.

It has nothing to do with the one that the gateway shows its peers: it is for whatever name clients call, and
most of them have none themselves.
"""

from __future__ import annotations

import grpc

from tokenfleet.gateway.settings import GatewaySettings
from tokenfleet.runtime.lifecycle import StartupError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.runtime.tls import Certificate, PemFiles, TlsError
from tokenfleet.runtime.tls.certificate import load_pair, server_context, trust

log = get_logger(__name__)


class EdgeTls:
    """Both servers' certificates, renewed in place: connections that are open go on."""

    def __init__(self, files: PemFiles, poll_s: float) -> None:
        """Raises TlsError."""
        self._certificate = Certificate(files, name=None, poll_s=poll_s)
        self._certificate.on_change.append(self._renew)
        # a listening socket keeps its context for ever, so this one is renewed instead of replaced
        self.context = server_context(files)
        self.context.set_alpn_protocols(["http/1.1"])

    def start(self) -> None:
        self._certificate.start()

    async def stop(self) -> None:
        await self._certificate.stop()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        return self._certificate.server_credentials()

    def _renew(self) -> None:
        files = self._certificate.files
        try:
            load_pair(self.context, files)
            if files.ca is not None:
                trust(self.context, files)
        except (TlsError, OSError) as error:
            # they were good a moment ago, so they are being replaced again, which will be seen
            log.error("certificate changed again while it was taken", problem=str(error))


def edge_tls(settings: GatewaySettings) -> EdgeTls | None:
    """None: the edge talks in the clear. Raises StartupError."""
    cert, key, ca = settings.edge_tls_cert, settings.edge_tls_key, settings.edge_tls_client_ca
    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None:
        missing = "--edge-tls-cert" if cert is None else "--edge-tls-key"
        raise StartupError(f"TLS at the edge needs --edge-tls-cert and --edge-tls-key: set {missing} too")
    try:
        return EdgeTls(PemFiles(cert, key, ca, "edge-tls", "client-ca"), settings.reload_poll_s)
    except TlsError as error:
        raise StartupError(str(error)) from error
