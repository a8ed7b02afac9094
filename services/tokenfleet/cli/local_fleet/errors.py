"""What can keep a local fleet from starting. Every message says what to do about it."""

from __future__ import annotations


class LocalFleetError(Exception):
    """A fleet cannot be started as asked."""


class PortTakenError(LocalFleetError):
    """Somebody else listens where the fleet shall."""

    def __init__(self, host: str, port: int, holder: str) -> None:
        self.port = port
        by = f" by {holder}" if holder else ""
        super().__init__(f"port {port} on {host} is taken{by}")


class FleetAlreadyRunsError(LocalFleetError):
    """A live supervisor holds the state directory."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid
        super().__init__(f"a fleet already runs on port {port}, pid {pid}")


class FleetStartError(LocalFleetError):
    """A process does not come up. `log_tail` has its last words, `log` where the others are."""

    def __init__(self, message: str, *, process: str = "", log: str = "", log_tail: str = "") -> None:
        self.process = process
        self.log = log
        self.log_tail = log_tail
        super().__init__(message + (f"; the end of {log}:\n{log_tail}" if log_tail else ""))
