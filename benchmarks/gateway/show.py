"""The rows for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks._measure import GENERATOR
from benchmarks._report import rounded
from benchmarks.gateway.rows import REQUEST_PATH, RowResult
from benchmarks.gateway.systems import GATEWAY

# Figure: what to stay below, and what to aim for then.
GOALS = {
    "gateway_cpu_us_per_token@256": (24.0, 17.0),
    "gateway_cpu_us_per_token@1000": (20.0, 15.0),
    "fleet_cpu_us_per_request": (800.0, 800.0),
    "added_ttft_ms_p50@64": (3.0, 3.0),
    "added_ttft_ms_p99@64": (10.0, 10.0),
}

MOST_FOREIGN_SHARE = 0.1


def show_rows(console: Console, results: Sequence[RowResult]) -> None:
    table = Table(title="Streams", title_justify="left", header_style="bold")
    for heading in (
        *("system", "streams", "ITL ms", "µs/token", "frames/token", "tokens/s", "+TTFT p50", "+TTFT p99"),
        *("worst gap p99", "gateway", "load core", "workers", "generator", "foreign", "RSS MB", ""),
    ):
        table.add_column(heading, justify="left" if heading in ("system", "") else "right")
    for result in results:
        if result.streamed:
            table.add_row(*_stream_cells(result))
    if table.row_count:
        console.print(table)
    for result in results:
        if not result.streamed:
            _show_requests(console, result)
        if result.foreign_share > MOST_FOREIGN_SHARE:
            console.print(
                f"[yellow]{result.system} {result.row}: other programs used {result.foreign_share:.0%} of a "
                "core meanwhile; what they did to caches and waiting times is in the figures[/]"
            )
        for problem in result.problems:
            console.print(f"[bold red]{result.system} {result.row} is not valid:[/] {problem}")


def show_figures(console: Console, figures: Mapping[str, float]) -> None:
    table = Table(title="Figures", title_justify="left", header_style="bold")
    for heading in ("figure", "value", "at most", "aim"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for name, value in figures.items():
        bound, aim = GOALS.get(name, (None, None))
        colour = "" if bound is None or aim is None else _colour(value, bound, aim)
        shown = f"{rounded(value):g}"
        table.add_row(
            name,
            f"[{colour}]{shown}[/]" if colour else shown,
            "" if bound is None else f"{bound:g}",
            "" if aim is None else f"{aim:g}",
        )
    console.print(table)


def _colour(value: float, bound: float, aim: float) -> str:
    return "green" if value <= aim else "yellow" if value <= bound else "bold red"


def _stream_cells(result: RowResult) -> list[str]:
    return [
        result.system,
        str(result.connections),
        str(result.itl_ms),
        f"[bold]{result.cpu_us_per_token:.1f}[/]",
        f"{result.frames_per_token:.3f}",
        f"{result.tokens_per_s:,.0f}",
        f"{result.added_ttft_ms_p50:.2f}",
        f"{result.added_ttft_ms_p99:.2f}",
        f"{result.worst_gap_ms_p99:.1f}",
        f"{result.core_share[GATEWAY]:.0%}",
        f"{result.load_core_busy:.0%}",
        f"{result.core_share.get('worker', 0):.0%}",
        f"{result.core_share[GENERATOR]:.0%}",
        f"{result.foreign_share:.0%}",
        f"{result.resident_mb:.0f}",
        "[green]valid[/]" if result.valid else "[bold red]not valid[/]",
    ]


def _show_requests(console: Console, result: RowResult) -> None:
    parts = {role: us for role, us in result.cpu_us_per_request.items() if us >= 1}
    total = sum(parts.get(role, 0.0) for role in REQUEST_PATH)
    console.print(
        f"[bold]Requests[/] of one token, {result.connections} connections: "
        f"[bold]{total:.0f} µs[/] a request in {' + '.join(REQUEST_PATH)}; "
        f"{result.requests_per_s:,.0f} requests/s, "
        f"p50 {result.latency_ms_p50:.1f} ms, p99 {result.latency_ms_p99:.1f} ms"
    )
    console.print("  " + ", ".join(f"{role} {us:.0f} µs" for role, us in parts.items()))
