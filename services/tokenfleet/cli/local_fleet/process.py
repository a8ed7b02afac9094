"""One process under supervision: started, watched, restarted with back-off, stopped within its grace.

Each process leads a session of its own. A terminal's Ctrl-C therefore reaches only the supervisor, which then
stops everything in order; and whatever a process leaves behind when it dies (an engine, a pool) is in its
process group and is removed before the next life starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenfleet.cli.local_fleet import launch
from tokenfleet.cli.local_fleet.errors import FleetStartError
from tokenfleet.cli.local_fleet.spec import ProcessSpec

EventKind = Literal["started", "ready", "crashed", "failed", "stopping", "stopped", "killed"]
State = Literal["stopped", "starting", "live", "ready", "crashed", "failed", "stopping"]

FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 5.0
# A life that was at least this long shows that the process works: the next crash counts as the first.
LONG_LIFE_S = 30.0
# Crashes in a row before it was ready even once; then more attempts would only hide the error.
CRASHES_AT_START = 3
# Bad flags or settings: they will be as bad the next time.
USAGE_ERROR = 2
LOG_TAIL_LINES = 15
# After SIGTERM and the process's own grace: time to notice that the grace is over.
KILL_MARGIN_S = 3.0


@dataclass(frozen=True)
class FleetEvent:
    """Something happened to a process; `detail` is for people."""

    process: str
    kind: EventKind
    detail: str = ""


class ManagedProcess:
    """A process's lives, one after the other. All methods belong to one event loop."""

    def __init__(
        self,
        spec: ProcessSpec,
        log: Path,
        environment: Mapping[str, str],
        on_event: Callable[[FleetEvent], None],
        *,
        restart: bool,
    ) -> None:
        self.spec = spec
        self.log = log
        self.state: State = "stopped"
        self.pid: int | None = None
        self.started_at = 0.0  # Unix time of the current life
        self.restarts = 0
        self._environment = {**environment, **spec.env}
        self._on_event = on_event
        self._restart = restart
        self._crashes_in_a_row = 0
        self._was_ready = False
        self._log_begins = 0  # where the current life's output starts
        self._condemned = False  # this life was sent a signal to end it: what it still says does not count
        self._live = asyncio.Event()
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._given_up = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._failure: FleetStartError | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the first life, or another one after `stop`."""
        assert self._task is None or self._task.done(), f"{self.spec.name} runs already"
        for event in (self._live, self._ready, self._ended, self._given_up, self._stop_asked):
            event.clear()
        self._failure = None
        self._was_ready = False
        self._crashes_in_a_row = 0
        self.state = "starting"
        self._task = asyncio.create_task(self._live_on(), name=f"supervise {self.spec.name}")

    async def wait_live(self) -> None:
        """Returns when the process answers; raises FleetStartError when it will not."""
        await self._wait_for(self._live)

    async def wait_ready(self) -> None:
        """Returns when the process can do its work; raises FleetStartError when it will not."""
        await self._wait_for(self._ready)

    async def wait_given_up(self) -> FleetStartError:
        """Returns when the process ended for good without having been told to, and why."""
        await self._given_up.wait()
        assert self._failure is not None
        return self._failure

    def kill(self, number: signal.Signals, *, group: bool = False) -> None:
        """Sends a signal to the process alone, or to all that it started as well."""
        if self.pid is None:
            raise ProcessLookupError(f"{self.spec.name} does not run")
        if number not in (signal.SIGSTOP, signal.SIGCONT):
            self._condemned = True
            self._live.clear()
            self._ready.clear()
        (os.killpg if group else os.kill)(self.pid, number)

    async def stop(self, grace_s: float) -> bool:
        """SIGTERM, then SIGKILL once the grace is over; false when it came to that."""
        if self._task is None:
            return True
        self._stop_asked.set()
        in_time = True
        if self.pid is not None:
            self._change("stopping", "stopping")
            _signal_process(self.pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(grace_s + KILL_MARGIN_S):
                    await self._ended.wait()
            except TimeoutError:
                in_time = False
                self._change("stopping", "killed", f"did not stop within {grace_s:g} s")
                self.kill_now()
        await self._task
        return in_time

    def kill_now(self) -> None:
        """Ends the process and everything in its group at once, for good."""
        self._stop_asked.set()
        if self.pid is not None:
            _signal_group(self.pid, signal.SIGKILL)

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines that the present or latest life wrote."""
        with self.log.open("rb") as log:
            log.seek(self._log_begins)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    async def _wait_for(self, event: asyncio.Event) -> None:
        reached, ended = (asyncio.create_task(each.wait()) for each in (event, self._ended))
        try:
            await asyncio.wait((reached, ended), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                return  # it came about, also where it is no longer so
        finally:
            reached.cancel()
            ended.cancel()
        raise self._failure or FleetStartError(
            f"{self.spec.name} was stopped before it was ready", process=self.spec.name
        )

    async def _live_on(self) -> None:
        try:
            while True:
                code, lived_s = await self._live_once()
                if self._stop_asked.is_set():
                    self._change("stopped", "stopped")
                    return
                if not self._restart or self._is_hopeless(code, lived_s):
                    self._fail(code)
                    return
                delay_s = min(FIRST_BACKOFF_S * 2 ** (self._crashes_in_a_row - 1), LONGEST_BACKOFF_S)
                self._change("crashed", "crashed", f"{_describe(code)}; starts again in {delay_s:g} s")
                if await _happens_within(self._stop_asked, delay_s):
                    self._change("stopped", "stopped")
                    return
                self.restarts += 1
        except Exception as error:
            failure = FleetStartError(f"{self.spec.name}: {error!r}", process=self.spec.name)
            failure.__cause__ = error
            self._give_up(failure, str(failure))
        finally:
            self._ended.set()

    async def _live_once(self) -> tuple[int, float]:
        """One life: spawn, follow its health until it ends, clean up after it."""
        born = time.monotonic()
        with self.log.open("ab") as log:
            self._log_begins = log.tell()
            child = await asyncio.create_subprocess_exec(
                *_wrapped(self.spec),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        self.pid = child.pid
        self._condemned = False
        self.started_at = time.time()
        self._change("starting", "started")
        if self._stop_asked.is_set():
            _signal_process(child.pid, signal.SIGTERM)
        following = asyncio.create_task(self._follow_health())
        ending = asyncio.create_task(child.wait())
        try:
            await asyncio.wait({following, ending}, return_when=asyncio.FIRST_COMPLETED)
            if following.done() and not ending.done():
                following.result()  # a health that cannot be followed is an error of the supervisor
            await ending
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            _signal_group(child.pid, signal.SIGKILL)
            code = await child.wait()
            self.pid = None
            self._live.clear()
            self._ready.clear()
        return code, time.monotonic() - born

    async def _follow_health(self) -> None:
        async for ready in self.spec.probe.follow():
            if self._condemned:
                continue
            self._live.set()
            if ready == self._ready.is_set() and self.state != "starting":
                continue
            if not ready:
                self._ready.clear()
            elif not self._ready.is_set():
                self._was_ready = True
                self._ready.set()
            if self.state != "stopping":
                self._change("ready" if ready else "live", "ready" if ready else None)

    def _is_hopeless(self, code: int, lived_s: float) -> bool:
        self._crashes_in_a_row = 1 if lived_s >= LONG_LIFE_S else self._crashes_in_a_row + 1
        if self._was_ready:
            return False
        return code == USAGE_ERROR or self._crashes_in_a_row >= CRASHES_AT_START

    def _fail(self, code: int) -> None:
        times = f", {self._crashes_in_a_row} times in a row" if self._crashes_in_a_row > 1 else ""
        message = f"{self.spec.name} {_describe(code)}{times}"
        tail = self.log_tail()
        self._give_up(
            FleetStartError(message, process=self.spec.name, log=str(self.log), log_tail=tail), message
        )

    def _give_up(self, failure: FleetStartError, message: str) -> None:
        self._failure = failure
        self._given_up.set()
        self._change("failed", "failed", message)

    def _change(self, state: State, kind: EventKind | None, detail: str = "") -> None:
        self.state = state
        if kind is not None:
            self._on_event(FleetEvent(self.spec.name, kind, detail))


def _wrapped(spec: ProcessSpec) -> tuple[str, ...]:
    cpus = ",".join(str(cpu) for cpu in spec.cpus)
    # isolated and without site-packages: this interpreter lives for some ten milliseconds
    return (sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), cpus, *spec.command)


def _describe(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"exited with code {code}"


async def _happens_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _signal_process(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it was faster
        os.kill(pid, number)


def _signal_group(pid: int, number: signal.Signals) -> None:
    # nobody is left in it, or (macOS) only processes that are dead already
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
