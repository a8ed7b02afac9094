"""The status as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenfleet.cli.console import plain_or_coloured
from tokenfleet.cli.status import ModelRow, Status, WorkerRow

# A worker tells of itself at least every second.
SILENT_MS = 3_000

_COLOURS = {
    "ready": "green",
    "loading": "yellow",
    "starting": "yellow",
    "live": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "crashed": "red",
    "failed": "red",
    "unreachable": "red",
}


def print_tables(state: Status, record: Mapping[str, Any], console: Console | None = None) -> None:
    """Workers, models, processes, and what is wrong."""
    console = console or plain_or_coloured()
    if record:
        health = {
            True: "[green]ready[/green]",
            False: "[yellow]not ready[/yellow]",
            None: "[red]no answer[/red]",
        }
        console.print(
            f"{state.http}  {health[state.ready]}   [dim]gRPC {record['grpc']}, pid {record['pid']}[/dim]"
        )
        console.print()
    for drawn, rows in (
        (_workers(state), state.workers),
        (model_table(state.models), state.models),
        (_processes(state), state.processes),
    ):
        if rows:
            console.print(drawn)
            console.print()
    for problem in state.problems:
        console.print(problem, style="red", markup=False)


def _workers(state: Status) -> Table:
    drawn = _table("worker", "zone", "state", "models", "running", "waiting", "KV", "step")
    for row in state.workers:
        error = f" [dim]{escape(_cause(row.error))}[/dim]" if row.error and row.state != "ready" else ""
        drawn.add_row(
            escape(row.name),
            escape(row.zone),
            (_silence(row) or _coloured(row.state)) + error,
            _places(row.models) or "–",
            str(row.running),
            str(row.waiting),
            "–" if row.kv_usage is None else f"{row.kv_usage:.0%}",
            "–" if row.step_ms is None else f"{row.step_ms:.1f} ms",
        )
    return drawn


def _silence(row: WorkerRow) -> str:
    """A worker that hangs still looks as it did when it last told."""
    if row.state != "ready" or row.sample_age_ms < SILENT_MS:
        return ""
    return f"[yellow]silent for {_duration(row.sample_age_ms / 1000)}[/yellow]"


def _cause(error: str) -> str:
    """gRPC puts what happened behind where and how it tried."""
    return error.rpartition(": ")[2]


def model_table(rows: Sequence[ModelRow], *, knows_places: bool = True) -> Table:
    """The columns that only a model-loader can fill are left out where none was asked."""
    drawn = _table("model", "context", *(("policy", "where", "memory", "remarks") if knows_places else ()))
    for row in rows:
        context = f"{row.context_length:,}" if row.context_length else "–"
        residency = (
            row.policy,
            _places(row.places) or "–",
            _bytes(row.memory_bytes or None),
            escape(_remark(row)),
        )
        drawn.add_row(escape(row.name), context, *(residency if knows_places else ()))
    return drawn


def _remark(row: ModelRow) -> str:
    if row.wants_memory_bytes:
        return f"wants {_bytes(row.wants_memory_bytes)}, which no worker has: add one, or unload a model"
    if row.error or row.loading:
        return row.error or row.loading
    if row.pinned and row.policy == "lazy":
        return "pinned"
    return "loads with its first request" if row.policy == "lazy" and not row.places else ""


def _places(states: Mapping[str, str]) -> str:
    return ", ".join(
        escape(name) if state == "ready" else f"{escape(name)} ({state})" for name, state in states.items()
    )


def _processes(state: Status) -> Table:
    drawn = _table("process", "state", "pid", "up", "restarts", "memory", "address")
    for row in state.processes:
        drawn.add_row(
            row["name"],
            _coloured(row["state"]),
            str(row["pid"] or "–"),
            "–" if row["uptime_s"] is None else _duration(row["uptime_s"]),
            str(row["restarts"]),
            _bytes(row["memory_bytes"]),
            row["address"].rpartition("/")[2],
        )
    return drawn


def _table(*columns: str) -> Table:
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in columns:
        numeric = column in ("running", "waiting", "KV", "step", "pid", "up", "restarts", "memory", "context")
        drawn.add_column(column, justify="right" if numeric else "left")
    return drawn


def _coloured(state: str) -> str:
    colour = _COLOURS.get(state)
    return f"[{colour}]{state}[/{colour}]" if colour else state


def _bytes(count: int | None) -> str:
    if count is None:
        return "–"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
