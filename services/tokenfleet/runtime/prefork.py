"""Several processes of one service behind one port.

Python serves from one core a process; a pod with more cores runs several, which share the listening port
(SO_REUSEPORT: the kernel spreads new connections). The parent forks them before any thread or event loop
exists, starts a new one for each that dies, and does nothing else.

A pipe ties the two together: the children hold its reading end and stop in their usual order when it closes,
which it does both when the parent is told to stop and when it dies. So no child outlives its parent, and a
Ctrl-C that the terminal sends to all of them at once is no different from a signal to the parent alone.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing

from tokenfleet.runtime import lifecycle
from tokenfleet.runtime.lifecycle import Lifecycle, StartupError
from tokenfleet.runtime.settings import Settings, split_address
from tokenfleet.runtime.telemetry import configure_logging, get_logger

log = get_logger(__name__)

# A child that dies sooner than this after its start is not replaced at once.
STEADY_S = 2.0

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)

Run = Callable[[Settings, Lifecycle], Awaitable[None]]


def serve(service: str, settings: Settings, processes: int, run: Run[Settings]) -> None:
    """Runs the service in this process, or in `processes` children of it."""
    if processes == 1:
        lifecycle.run(service, settings, lambda life: run(settings, life))
        return
    configure_logging(service, settings.log_level, settings.log_format)
    try:
        with closing(_reserve(settings.listen)) as reserved:
            host, _ = split_address(settings.listen)
            shared = settings.model_copy(update={"listen": f"{host}:{reserved.getsockname()[1]}"})
            code = _Parent(service, shared, processes, run).supervise()
    except StartupError as error:
        print(f"{service}: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    raise SystemExit(code)


def _reserve(address: str) -> socket.socket:
    """Holds the port without listening, so that it is known and free before the first child starts."""
    if not hasattr(os, "fork") or not hasattr(socket, "SO_REUSEPORT"):
        raise StartupError("this system cannot share a port between processes: use --processes 1")
    host, port = split_address(address)
    holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        holder.close()
        raise StartupError(
            f"cannot listen on {address}: {error.strerror}. "
            "Stop the process that uses the port, or choose another with --listen host:port"
        ) from error
    return holder


class _Parent:
    """Forks and watches. It has no event loop: it only waits for signals."""

    def __init__(self, service: str, settings: Settings, processes: int, run: Run[Settings]) -> None:
        self._service = service
        self._settings = settings
        self._processes = processes
        self._run = run
        self._children: dict[int, tuple[int, float]] = {}  # pid -> index, time of its start
        self._due: dict[int, float] = {}  # index -> when to start it again
        self._reading, self._writing = os.pipe()
        self._wakeup, self._signalled = os.pipe()
        self._stopping = False

    def supervise(self) -> int:
        """Until all children have ended after a signal; answers the exit status."""
        os.set_blocking(self._signalled, False)
        signal.set_wakeup_fd(self._signalled)
        for number in _SIGNALS:
            signal.signal(number, _only_wake_up)
        for index in range(self._processes):
            self._start(index)
        while self._children or self._due:
            for arrived in self._signals():
                if arrived != signal.SIGCHLD:
                    self._stop(signal.Signals(arrived).name)
            self._reap()
            self._start_due()
        return 0

    def _signals(self) -> bytes:
        """The numbers of the next signals; none when a start falls due before."""
        pause_s = max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None
        readable, _, _ = select.select([self._wakeup], [], [], pause_s)
        return os.read(self._wakeup, 64) if readable else b""

    def _stop(self, cause: str) -> None:
        if self._stopping:
            log.warning("stopped at once", cause=cause)
            for pid in self._children:
                os.kill(pid, signal.SIGKILL)
            return
        log.info("stopping", cause=cause, processes=len(self._children))
        self._stopping = True
        self._due.clear()
        os.close(self._writing)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            index, started = self._children.pop(pid)
            if not self._stopping:
                now = time.monotonic()
                code = os.waitstatus_to_exitcode(status)
                log.error("process died", process=index, exit_code=code)
                self._due[index] = max(now, started + STEADY_S)

    def _start_due(self) -> None:
        for index in [index for index, due in self._due.items() if due <= time.monotonic()]:
            del self._due[index]
            self._start(index)

    def _start(self, index: int) -> None:
        # a signal in between would reach the child while it still has the parent's handlers
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid == 0:
            os._exit(self._child(index))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._children[pid] = (index, time.monotonic())

    def _child(self, index: int) -> int:
        os.close(self._writing)
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        frames_port = self._settings.frames_port
        own = self._settings.model_copy(
            update={
                "metrics_listen": _offset(self._settings.metrics_listen, index),
                "frames_port": frames_port + index if frames_port else 0,
            }
        )

        async def main(life: Lifecycle) -> None:
            _stop_with_parent(self._reading, life)
            await self._run(own, life)

        try:
            lifecycle.run(self._service, own, main)
        except SystemExit as exit_:
            return exit_.code if isinstance(exit_.code, int) else 1
        except BaseException:
            log.exception("process failed", process=index)
            return 1
        return 0


def _only_wake_up(number: int, frame: object) -> None:
    """The signal's number is in the pipe already."""


def _stop_with_parent(reading: int, life: Lifecycle) -> None:
    loop = asyncio.get_running_loop()

    def closed() -> None:
        loop.remove_reader(reading)
        life.stop("parent stops")

    loop.add_reader(reading, closed)


def _offset(address: str, index: int) -> str:
    """Each process has its own metrics: on consecutive ports, or on free ones where the port is 0."""
    host, port = split_address(address)
    return f"{host}:{port + index if port else 0}"
