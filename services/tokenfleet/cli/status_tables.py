"""The status as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from tokenfleet.cli.status import Status

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
    console = console or Console(highlight=False)
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
    for table, rows in (
        (_workers(state), state.workers),
        (_models(state), state.models),
        (_processes(state), state.processes),
    ):
        if rows:
            console.print(table)
            console.print()
    for problem in state.problems:
        console.print(problem, style="red", markup=False)


def _workers(state: Status) -> Table:
    table = _table("worker", "zone", "state", "models", "running", "waiting", "KV", "step")
    for row in state.workers:
        models = ", ".join(name if at == "ready" else f"{name} ({at})" for name, at in row.models.items())
        table.add_row(
            row.name,
            row.zone,
            _coloured(row.state) + (f" [dim]{row.error}[/dim]" if row.error and row.state != "ready" else ""),
            models or "–",
            str(row.running),
            str(row.waiting),
            "–" if row.kv_usage is None else f"{row.kv_usage:.0%}",
            "–" if row.step_ms is None else f"{row.step_ms:.1f} ms",
        )
    return table


def _models(state: Status) -> Table:
    table = _table("model", "policy", "where", "memory", "remarks")
    for row in state.models:
        places = ", ".join(name if at == "ready" else f"{name} ({at})" for name, at in row.places.items())
        table.add_row(
            row.name,
            row.policy,
            places or "–",
            _bytes(row.memory_bytes or None),
            row.error or row.loading,
        )
    return table


def _processes(state: Status) -> Table:
    table = _table("process", "state", "pid", "up", "restarts", "memory", "address")
    for row in state.processes:
        table.add_row(
            row["name"],
            _coloured(row["state"]),
            str(row["pid"] or "–"),
            "–" if row["uptime_s"] is None else _duration(row["uptime_s"]),
            str(row["restarts"]),
            _bytes(row["memory_bytes"]),
            row["address"].rpartition("/")[2],
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in columns:
        numeric = column in ("running", "waiting", "KV", "step", "pid", "up", "restarts", "memory")
        table.add_column(column, justify="right" if numeric else "left")
    return table


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
