"""A certificate and its key as they are on disk now, and what is made of them.

A pair that would not work is never taken: it is tried in a handshake with itself first, which tells in
OpenSSL's words what a peer would say (expired, not for this name, not of this authority, not this key).
At start that is an error; later the last good pair stays, because a renewal that went wrong should not take
down what runs.
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tokenfleet.runtime.file_watch import FileWatch
from tokenfleet.runtime.telemetry import get_logger

WARN_BEFORE_S = 7 * 86_400
MOST_FLIGHTS = 8

log = get_logger(__name__)


class TlsError(Exception):
    """Certificates that cannot be used; the message names the setting and the remedy."""


@dataclass(frozen=True)
class PemFiles:
    """Where they are; `flag` is what their settings begin with: `tls` of `--tls-cert`."""

    cert: Path  # the certificate, and behind it those that lead to its authority
    key: Path
    ca: Path | None  # the authorities that peers have to be of
    flag: str = "tls"
    ca_flag: str = "ca"

    def paths(self) -> tuple[Path, ...]:
        return (self.cert, self.key, *([self.ca] if self.ca else []))


@dataclass(frozen=True)
class Loaded:
    """One consistent set of files, tried out."""

    cert: bytes
    key: bytes
    ca: bytes | None
    server: ssl.SSLContext
    client: ssl.SSLContext | None  # for calling others with the same certificate; None at the edge
    names: tuple[str, ...]
    not_after: float  # Unix time


class Certificate:
    """The present set of files; `changed` callbacks hear of each later one."""

    def __init__(self, files: PemFiles, *, name: str | None, poll_s: float) -> None:
        """`name`: what its peers will expect it to say; None: no peers, but clients. Raises TlsError."""
        self.files = files
        self._name = name
        self._watch = FileWatch(files.paths(), self._read_again, poll_s)
        self.loaded = _load(files, name)
        self.on_change: list[Callable[[], None]] = []
        self._tell()

    def start(self) -> None:
        """Follows the files from now on."""
        self._watch.start()

    async def stop(self) -> None:
        await self._watch.stop()

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server: each handshake is done with the files as they are then."""
        given = self.loaded

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if given is self.loaded:
                return None
            given = self.loaded
            return _configuration(given)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(given),
            fetch,  # type: ignore[arg-type]  # None says that nothing changed, which the stubs do not know
            require_client_authentication=given.ca is not None,
        )

    def _read_again(self) -> None:
        try:
            self.loaded = _load(self.files, self._name)
        except TlsError as error:
            log.error("certificate not taken: the last good one stays", problem=str(error))
            return
        self._tell()
        for call in self.on_change:
            call()

    def _tell(self) -> None:
        left_s = self.loaded.not_after - time.time()
        tell = log.warning if left_s < WARN_BEFORE_S else log.info
        tell(
            "certificate",
            file=str(self.files.cert),
            names=list(self.loaded.names),
            days_left=math.floor(left_s / 86_400),
        )


def _configuration(loaded: Loaded) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(loaded.key, loaded.cert)], loaded.ca)


def _load(files: PemFiles, name: str | None) -> Loaded:
    before = _read(files)
    server = server_context(files)
    client = None if name is None else client_context(files)
    peer = _rehearse(files, name, server, client)
    if before != _read(files):
        raise TlsError(f"--{files.flag}-cert: {files.cert}: the files were replaced while they were read")
    return Loaded(
        *before,
        server=server,
        client=client,
        names=tuple(value for kind, value in peer.get("subjectAltName", ()) if kind in ("DNS", "IP Address")),
        not_after=ssl.cert_time_to_seconds(peer["notAfter"]),
    )


def server_context(files: PemFiles) -> ssl.SSLContext:
    """TLS 1.2 or later; clients need a certificate when there is an authority for it. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, files)
    if files.ca is not None:
        trust(context, files)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(files: PemFiles) -> ssl.SSLContext:
    """For calling peers. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, files)
    trust(context, files)
    return context


def load_pair(context: ssl.SSLContext, files: PemFiles) -> None:
    """Certificate and key into the context, also one in use. Raises TlsError."""
    try:
        context.load_cert_chain(files.cert, files.key, password=lambda: b"")  # or it would ask the terminal
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"--{files.flag}-key: {files.key}: is not the key of {files.cert}") from error
        raise TlsError(
            f"--{files.flag}-cert, --{files.flag}-key: {files.cert}, {files.key}: expected a certificate and "
            f"its unencrypted key as PEM ({error.reason or error})"
        ) from error


def trust(context: ssl.SSLContext, files: PemFiles) -> None:
    """The authorities into the context. Raises TlsError."""
    try:
        context.load_verify_locations(files.ca)
    except ssl.SSLError as error:
        flag = f"--{files.flag}-{files.ca_flag}"
        raise TlsError(
            f"{flag}: {files.ca}: expected certificates as PEM ({error.reason or error})"
        ) from error


def _read(files: PemFiles) -> tuple[bytes, bytes, bytes | None]:
    flags = {files.cert: "cert", files.key: "key", files.ca: files.ca_flag}
    contents = []
    for path in files.paths():
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            raise TlsError(f"--{files.flag}-{flags[path]}: {path}: {error.strerror}") from error
    cert, key, *ca = contents
    return cert, key, ca[0] if ca else None


def _rehearse(
    files: PemFiles, name: str | None, server: ssl.SSLContext, client: ssl.SSLContext | None
) -> dict[str, Any]:
    """What a peer sees of the certificate. Raises TlsError when a peer would not take it."""
    if client is None:
        server, client = _pinned(files)
    try:
        return _shake_hands(server, client, name)
    except ssl.SSLCertVerificationError as error:
        trusted = f" (trusting {files.ca})" if name else ""
        raise TlsError(
            f"--{files.flag}-cert: {files.cert}: no peer would take it{trusted}: {error.verify_message}"
        ) from error
    except ssl.SSLError as error:
        raise TlsError(f"--{files.flag}-cert: {files.cert}: no handshake: {error.reason or error}") from error


def _pinned(files: PemFiles) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Both ends for a certificate of whatever authority: it vouches for itself, only its dates count."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(server, files)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(files.cert)
    return server, client


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> dict[str, Any]:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname=name)
    asked = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(MOST_FLIGHTS):
        waiting = 0
        for side in (asking, asked):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waiting += 1
        if not waiting:
            break
    return asking.getpeercert() or {}
