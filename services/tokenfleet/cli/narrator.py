"""What `tokenfleet up` says while it works: bars on a terminal, plain lines into a pipe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from tokenfleet.cli.console import plain_or_coloured
from tokenfleet.cli.local_fleet import FleetEvent
from tokenfleet.v1 import common_pb2

_STAGES = {
    common_pb2.LoadProgress.STAGE_QUEUED: "waiting for its turn",
    common_pb2.LoadProgress.STAGE_FETCHING: "fetching",
    common_pb2.LoadProgress.STAGE_VERIFYING: "verifying",
    common_pb2.LoadProgress.STAGE_STARTING_ENGINE: "starting the engine",
    common_pb2.LoadProgress.STAGE_WARMING_UP: "warming up",
    common_pb2.LoadProgress.STAGE_READY: "ready",
    common_pb2.LoadProgress.STAGE_FAILED: "failed",
}


class Narrator:
    """Turns the fleet's events into a few lines for a person. A terminal that went away silences it."""

    def __init__(self, processes: Sequence[str], logs: str) -> None:
        self._console = plain_or_coloured()
        self._processes = processes
        self._logs = logs
        self._ready: set[str] = set()
        self._phase = "checking"
        self._began = time.monotonic()
        self._stages: dict[str, int] = {}
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=5,
            disable=not self._console.is_terminal,
        )
        self._start_bar = self._progress.add_task(f"{len(processes)} processes", total=len(processes))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish_bars()

    def say(self, text: str = "", style: str | None = None) -> None:
        """One line, never wrapped: what is printed may be meant to be pasted."""
        try:
            self._console.print(text, style=style, markup=False, soft_wrap=True)
        except OSError:
            # the terminal is gone; stopping in order matters more than telling about it
            self._console.quiet = True

    def finish_bars(self) -> None:
        self._progress.stop()

    def happened(self, event: FleetEvent) -> None:
        """A process of the fleet changed its state."""
        if self._phase == "checking":
            # nothing was in the way: the first process has started
            self._phase = "starting"
            self.say(f"starting {len(self._processes)} processes; their logs are in {self._logs}")
            self._progress.start()
        if event.kind == "ready":
            self._process_ready(event.process)
        elif event.kind == "crashed":
            self._ready.discard(event.process)
            self.say(f"{event.process} {event.detail}; log: {self._logs}/{event.process}.log", style="yellow")
        elif event.kind == "killed":
            self.say(f"{event.process} {event.detail}: killed", style="yellow")
        elif self._phase == "stopping" and event.kind == "stopped":
            self.say(f"  {event.process} stopped", style="dim")

    def loading(self, progress: common_pb2.LoadProgress) -> None:
        """A model came further."""
        stage = _STAGES.get(progress.stage, "loading")
        if progress.model not in self._bars:
            self._bars[progress.model] = self._progress.add_task(progress.model, total=None)
        finished = progress.stage == common_pb2.LoadProgress.STAGE_READY
        self._progress.update(
            self._bars[progress.model],
            description=f"{progress.model}: {stage}{_megabytes(progress)}",
            total=(progress.bytes_total or None) if not finished else 1,
            completed=progress.bytes_done if not finished else 1,
        )
        if self._stages.get(progress.model) != progress.stage:
            self._stages[progress.model] = progress.stage
            if not self._console.is_terminal:
                self.say(f"{progress.model}: {stage}{_megabytes(progress)}")

    def running(self) -> None:
        """Everything is up; from here on only what is out of the ordinary is told."""
        self._phase = "running"
        self.finish_bars()

    def stopping(self, why: str) -> None:
        self._phase = "stopping"
        self.finish_bars()
        self.say()
        self.say(why)

    def _process_ready(self, name: str) -> None:
        first_time = name not in self._ready and self._phase == "starting"
        self._ready.add(name)
        if self._phase == "running":
            self.say(f"{name} is ready again", style="green")
        elif first_time:
            self._progress.update(self._start_bar, completed=len(self._ready))
            if len(self._ready) == len(self._processes) and not self._console.is_terminal:
                self.say(f"all processes are ready after {time.monotonic() - self._began:.1f} s")


def _megabytes(progress: common_pb2.LoadProgress) -> str:
    if not progress.bytes_total or progress.stage == common_pb2.LoadProgress.STAGE_READY:
        return ""
    return f" {progress.bytes_done / 1e6:.0f} of {progress.bytes_total / 1e6:.0f} MB"
