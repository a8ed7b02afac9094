"""How far models have been loaded: a bar for each on a terminal, a line for each stage into a pipe."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tokenfleet.cli.gateway_http import Loading


class LoadBar:
    """Begins with the first that is shown, and leaves nothing on the terminal when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, str] = {}  # stage by model

    def show(self, loading: Loading) -> None:
        if not self._console.is_terminal:
            if self._told.get(loading.model) != loading.stage:
                self._told[loading.model] = loading.stage
                self._console.print(described(loading), style="dim", markup=False, soft_wrap=True)
            return
        if self._progress is None:
            self._progress = self._started()
        if loading.model not in self._tasks:
            self._tasks[loading.model] = self._progress.add_task("", total=None)
        self._progress.update(
            self._tasks[loading.model],
            description=escape(_printable(described(loading))),
            completed=loading.done,
            total=loading.total or None,
        )

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()

    def _started(self) -> Progress:
        progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=8,
            transient=True,
        )
        progress.start()
        return progress


def described(loading: Loading) -> str:
    """`model: fetching 40 of 94 MB, 12 s left`."""
    text = f"{loading.model}: {loading.stage}"
    if loading.total:
        text += f" {_megabytes(loading.done)} of {_megabytes(loading.total)} MB"
    return text + (f", {loading.eta_s:.0f} s left" if loading.eta_s else "")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f}" if count >= 1e7 else f"{count / 1e6:.1f}"


def _printable(text: str) -> str:
    return "".join(each for each in text if each.isprintable())
