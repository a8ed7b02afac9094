"""A service among its peers: what it shows, and whom it takes them for."""

from __future__ import annotations

import ssl

import grpc

from tokenfleet.runtime.tls.certificate import Certificate


class Identity:
    """This process's certificate, by which it both serves and calls."""

    def __init__(self, certificate: Certificate, domain: str) -> None:
        self.certificate = certificate
        self._domain = domain
        self._made: tuple[object, grpc.ChannelCredentials] | None = None

    def name_of(self, role: str) -> str:
        """What the certificate of a peer in that role has to say."""
        return name_of(role, self._domain)

    @property
    def server_context(self) -> ssl.SSLContext:
        return self.certificate.loaded.server

    @property
    def client_context(self) -> ssl.SSLContext:
        context = self.certificate.loaded.client
        assert context is not None
        return context

    def server_credentials(self) -> grpc.ServerCredentials:
        return self.certificate.server_credentials()

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """The same object until the files change: gRPC compares them to share connections."""
        loaded = self.certificate.loaded
        if self._made is None or self._made[0] is not loaded:
            self._made = loaded, grpc.ssl_channel_credentials(loaded.ca, loaded.key, loaded.cert)
        return self._made[1]


def name_of(role: str, domain: str) -> str:
    return f"{role}.{domain}"


_own: Identity | None = None


def adopt(identity: Identity | None) -> None:
    """Makes it this process's; None: the process talks in the clear."""
    global _own  # noqa: PLW0603
    _own = identity


def own_identity() -> Identity | None:
    return _own
