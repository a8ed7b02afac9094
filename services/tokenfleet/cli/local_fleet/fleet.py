"""The supervisor of a local fleet: starts it, keeps it alive, takes it down, leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tokenfleet.cli.local_fleet import leftovers
from tokenfleet.cli.local_fleet import spec as planning
from tokenfleet.cli.local_fleet.errors import FleetStartError
from tokenfleet.cli.local_fleet.ports import PortReservation, require_free
from tokenfleet.cli.local_fleet.process import FleetEvent, ManagedProcess
from tokenfleet.cli.local_fleet.spec import FleetSpec, Layout
from tokenfleet.cli.local_fleet.state import FLEET_ID_VARIABLE, StateDir


@dataclass(frozen=True)
class StopReport:
    """How a fleet ended. Both lists are empty when all went as it should."""

    killed: list[str]  # names of processes that did not stop within their grace
    left_behind: list[str]  # descriptions of processes that their parents forgot, killed now


class LocalFleet:
    """A fleet of processes on this machine. Use as an async context manager, or `start` and `stop`."""

    def __init__(self, spec: FleetSpec, on_event: Callable[[FleetEvent], None] = lambda event: None) -> None:
        self.spec = spec
        self.processes: dict[str, ManagedProcess] = {}
        self.addresses: dict[str, str] = {}
        self.metrics_addresses: dict[str, str] = {}  # host:port of each service's Prometheus endpoint
        self.http_address = ""
        self.predecessors: list[str] = []  # what a killed fleet had left in this state directory
        self._on_event = on_event
        self._id = uuid.uuid4().hex
        self._state = StateDir(spec.state_dir)
        self._ports = PortReservation()
        self._started_at = 0.0
        self._temporary = Path()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def http_url(self) -> str:
        scheme = "https" if self.spec.security.edge else "http"
        return f"{scheme}://{self.http_address}"

    async def start(self) -> None:
        """Starts everything and waits until every process is ready. Raises LocalFleetError."""
        await self.launch()
        await self.wait_ready()

    async def launch(self) -> None:
        """Starts everything and waits until every process answers. Raises LocalFleetError."""
        before = self._state.lock()
        if before:
            self.predecessors = await asyncio.to_thread(leftovers.end_all, before["fleet_id"])
        if self.spec.http_port:
            require_free(self.spec.host, self.spec.http_port)
        if self.spec.grpc_port:
            require_free(self.spec.host, self.spec.grpc_port)
        self._started_at = time.time()
        self._temporary = self._state.prepare_temporary(before)
        self._plan()
        # everything else finds its peers when they appear; only the loader reads the store at once
        self.processes[planning.STORE].start()
        await self._within_patience(self.processes[planning.STORE].wait_ready(), "start")
        for process in self.processes.values():
            if process.spec.role != planning.STORE:
                process.start()
        await self._for_all(ManagedProcess.wait_live, list(self.processes.values()), "answer")

    async def wait_ready(self, *names: str) -> None:
        """Waits until these processes, or all, can do their work. Raises FleetStartError."""
        waited = [self.processes[name] for name in names] or list(self.processes.values())
        await self._for_all(ManagedProcess.wait_ready, waited, "become ready")

    async def wait_given_up(self) -> FleetStartError:
        """Returns when a process ended for good without having been told to, and why."""
        waits = [asyncio.create_task(process.wait_given_up()) for process in self.processes.values()]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for wait in waits:
                wait.cancel()

    async def stop(self, grace_s: float | None = None) -> StopReport:
        """Drains and stops in the order that loses nothing; then makes sure that nothing is left."""
        grace = self.spec.grace_s if grace_s is None else grace_s
        sessions = [process.pid for process in self.processes.values() if process.pid is not None]
        killed: list[str] = []
        for roles in planning.STOP_ORDER:
            phase = [process for process in self.processes.values() if process.spec.role in roles]
            in_time = await asyncio.gather(*(process.stop(grace) for process in phase))
            killed += [process.spec.name for process, ok in zip(phase, in_time, strict=True) if not ok]
        left_behind: list[str] = []
        if self.processes:
            left_behind = await asyncio.to_thread(leftovers.end_all, self._id, sessions)
        self._ports.release()
        self._state.unlock()
        return StopReport(killed, left_behind)

    def kill_now(self) -> None:
        """Ends every process at once; `stop` is still to be awaited."""
        for process in self.processes.values():
            process.kill_now()

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL, *, group: bool = False) -> None:
        """Signals one process, without a word to the others; with `restart` it comes back."""
        self.processes[name].kill(number, group=group)

    def pid(self, name: str) -> int:
        pid = self.processes[name].pid
        if pid is None:
            raise ProcessLookupError(f"{name} does not run")
        return pid

    def log(self, name: str) -> Path:
        return self._state.log(name)

    def _plan(self) -> None:
        services = [name for name in self.spec.process_names() if name != planning.STORE]
        ports = self._ports.take(2 * len(services) + 2)
        host = f"[{self.spec.host}]" if ":" in self.spec.host else self.spec.host
        http, grpc = self.spec.http_port or ports.pop(), self.spec.grpc_port or ports.pop()
        self.http_address = f"{host}:{http}"
        layout = Layout(
            http=self.http_address,
            grpc={
                name: f"{host}:{grpc}" if name == planning.GATEWAY else f"127.0.0.1:{ports.pop()}"
                for name in services
            },
            metrics={name: f"127.0.0.1:{ports.pop()}" for name in services},
            store_socket=self._state.socket_path("store.sock"),
            store_data=self._state.store_data,
        )
        # a process that is killed cannot remove its temporary files: they go with the fleet
        environment = {**os.environ, FLEET_ID_VARIABLE: self._id, "TMPDIR": str(self._temporary)}
        for process in planning.plan(self.spec, layout):
            log = self._state.log(process.name)
            self.addresses[process.name] = process.address
            self.processes[process.name] = ManagedProcess(
                process, log, environment, self._happened, restart=self.spec.restart
            )
        self.metrics_addresses = dict(layout.metrics)

    async def _for_all(
        self, wait: Callable[[ManagedProcess], Any], processes: list[ManagedProcess], what: str
    ) -> None:
        """Waits for all at once; the first that fails fails the whole."""
        tasks = [asyncio.ensure_future(wait(process)) for process in processes]
        try:
            await self._within_patience(asyncio.gather(*tasks), what)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _within_patience(self, waiting: Any, what: str) -> None:
        try:
            async with asyncio.timeout(self.spec.start_timeout_s):
                await waiting
        except TimeoutError as error:
            late = [process for process in self.processes.values() if process.state != "ready"]
            names = ", ".join(f"{process.spec.name} ({process.state})" for process in late)
            raise FleetStartError(
                f"after {self.spec.start_timeout_s:g} s these processes did not {what}: {names}",
                process=late[0].spec.name if late else "",
                log=str(late[0].log) if late else "",
                log_tail=late[0].log_tail() if late else "",
            ) from error

    def _happened(self, event: FleetEvent) -> None:
        self._state.write_record(self._record())
        self._on_event(event)

    def _record(self) -> dict[str, Any]:
        return {
            "version": 1,
            "fleet_id": self._id,
            "pid": os.getpid(),
            "started_at": self._started_at,
            "state_dir": str(self.spec.state_dir),
            "temporary": str(self._temporary),
            "http_port": int(self.http_address.rpartition(":")[2]),
            "http": self.http_url if self.spec.security.edge else self.http_address,
            "grpc": self.addresses[planning.GATEWAY],
            "engines": list(self.spec.engines),
            "processes": [
                {
                    "name": name,
                    "role": process.spec.role,
                    "state": process.state,
                    "pid": process.pid,
                    "started_at": process.started_at,
                    "restarts": process.restarts,
                    "address": process.spec.address,
                    "metrics": self.metrics_addresses.get(name, ""),
                    "zone": process.spec.zone,
                    "log": str(process.log),
                }
                for name, process in self.processes.items()
            ],
        }
