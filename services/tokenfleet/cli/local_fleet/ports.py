"""Ports: free ones for the fleet's inside, and who holds the one that was asked for.

All addresses are known before the first process starts, so that processes that name each other start at once
and a restarted one is found where it was. On Linux a reserved port stays bound for the fleet's life without
listening: the kernel then gives it to nobody else, while a server that sets SO_REUSEADDR (all do) may listen.
"""

from __future__ import annotations

import errno
import socket
import sys

from tokenfleet.cli.local_fleet.errors import LocalFleetError, PortTakenError

LOOPBACK = "127.0.0.1"
_CONNECT_TIMEOUT_S = 0.3


class PortReservation:
    """Free ports on the loopback interface, distinct among all fleets of the machine."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self, count: int) -> list[int]:
        taken = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
        for each in taken:
            each.bind((LOOPBACK, 0))
        ports = [int(each.getsockname()[1]) for each in taken]
        for each in taken:
            if sys.platform == "linux":
                # set only now: with it, bind() itself could have shared another fleet's reservation
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._held.append(each)
            else:
                each.close()
        return ports

    def release(self) -> None:
        while self._held:
            self._held.pop().close()


def require_free(host: str, port: int) -> None:
    """Raises PortTakenError, naming the holder where the system tells, unless a server could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTakenError(host, port, holder_of(port)) from error
            raise LocalFleetError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    # BSD lets a specific address be bound beside a wildcard listener, which would then get half the calls
    if _answers(host, port):
        raise PortTakenError(host, port, holder_of(port))


def _answers(host: str, port: int) -> bool:
    reachable = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)
    try:
        socket.create_connection((reachable, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def holder_of(port: int) -> str:
    """`pid 4711 (python -m http.server)` of the listener on `port`; empty where it cannot be found out."""
    import psutil

    for process in psutil.process_iter():
        try:
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    command = " ".join(process.cmdline()) or process.name()
                    return f"pid {process.pid} ({_shortened(command)})"
        except psutil.Error:
            # other people's processes do not show their connections
            continue
    return ""


def _shortened(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
