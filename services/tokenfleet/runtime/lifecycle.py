"""How every service starts and stops: stop accepting, tell peers, finish within grace, hand the rest over.

`run` owns the event loop and the signals. The first SIGTERM or SIGINT sets `stopping`; the service then
drains by its own rules and returns. A second one ends the process at once, because a person who presses
Ctrl-C twice means it; one signal that comes when the process is stopping for another reason does not.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable

from tokenfleet.runtime.settings import ServiceSettings
from tokenfleet.runtime.telemetry import configure_logging, get_logger
from tokenfleet.runtime.tls import Certificate, Identity, PemFiles, TlsError, adopt
from tokenfleet.runtime.tls.identity import name_of

_M_ARENA_MAX = -8  # glibc's number

log = get_logger(__name__)


class Lifecycle:
    """The stop signal as a condition that a service can wait for."""

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self.stopping = asyncio.Event()
        self._signalled = False

    def stop(self, cause: str) -> None:
        if not self.stopping.is_set():
            log.info("stopping", cause=cause, grace_s=self.grace_s)
            self.stopping.set()

    def signalled(self, cause: str) -> None:
        if self._signalled:
            log.warning("stopped at once", cause=cause)
            os._exit(130)
        self._signalled = True
        self.stop(cause)

    def handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.signalled, signal.Signals(number).name)


def run(service: str, settings: ServiceSettings, main: Callable[[Lifecycle], Awaitable[None]]) -> None:
    """Runs `main` until it returns; an error ends the process with 1 and one log record."""
    configure_logging(service, settings.log_level, settings.log_format)

    async def supervised() -> None:
        lifecycle = Lifecycle(settings.grace_s)
        lifecycle.handle_signals()
        if identity is not None:
            identity.certificate.start()
        await main(lifecycle)
        if identity is not None:
            await identity.certificate.stop()

    try:
        identity = _identity(service, settings)
        adopt(identity)
        _new_runner()(supervised())
    except StartupError as error:
        print(f"{service}: {error}", file=sys.stderr)
        raise SystemExit(1) from error


def _identity(service: str, settings: ServiceSettings) -> Identity | None:
    """Raises StartupError when the certificates cannot be used."""
    given = {"cert": settings.tls_cert, "key": settings.tls_key, "ca": settings.tls_ca}
    cert, key, authority = given.values()
    if not any(given.values()):
        return None
    if cert is None or key is None or authority is None:
        missing = ", ".join(f"--tls-{name}" for name, path in given.items() if path is None)
        raise StartupError(f"mutual TLS needs --tls-cert, --tls-key and --tls-ca: set {missing} too")
    try:
        files, name = PemFiles(cert, key, authority), name_of(service, settings.tls_domain)
        certificate = Certificate(files, name=name, poll_s=settings.reload_poll_s)
    except TlsError as error:
        raise StartupError(str(error)) from error
    return Identity(certificate, settings.tls_domain)


class StartupError(Exception):
    """The service cannot start; the message says what to do about it."""


def freeze_heap() -> None:
    """Takes what start-up built out of the collector's sight and makes collections rarer.

    A hot process allocates many short-lived containers; scanning the imported modules again and again costs
    several per cent of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def share_one_heap() -> None:
    """Before threads start: glibc gives each its own heap, and what one freed the others cannot use."""
    adjust = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if adjust is not None:
        adjust(_M_ARENA_MAX, 1)


def shrink_heap() -> None:
    """After something large is gone: what `freeze_heap` hid is looked through too, and pages go back.

    The C library keeps freed pages for its own use until it is told to return them; glibc's can be told.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _new_runner() -> Callable[[Awaitable[None]], None]:
    try:
        import uvloop
    except ImportError:
        return asyncio.run  # type: ignore[return-value]
    return uvloop.run  # type: ignore[return-value]
