"""`python -m benchmarks.gateway`: measures, shows, and keeps a full run's results."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks._cores import Cores, TooFewCores, choose_cores
from benchmarks._measure import Schedule, Window, measure_idle, until_quiet
from benchmarks._priority import step_forward
from benchmarks._report import RESULTS, Report, versions
from benchmarks.gateway import plots
from benchmarks.gateway.figures import figures_of
from benchmarks.gateway.plan import QUICK_ROWS, ROWS, Row
from benchmarks.gateway.profile import NoProfiler, profile_row, profiler
from benchmarks.gateway.rows import RowResult, per, run_row
from benchmarks.gateway.show import show_figures, show_rows
from benchmarks.gateway.systems import GATEWAY, NotResident, System, bare_server, fleet
from loadtest.driver.control import DriverError
from tokenfleet.cli.local_fleet import LocalFleetError

STATE = Path(".tokenfleet/bench-gateway").absolute()
# What a fleet still does when it is ready (filling caches, say) belongs to no row.
QUIET_SHARE, QUIET_PATIENCE_S = 0.08, 20.0
FULL = Schedule(warmup_s=3.0, window_s=10.0, windows=3)
FULL_BARE = Schedule(warmup_s=2.0, window_s=5.0, windows=3)
QUICK = QUICK_BARE = Schedule(warmup_s=1.0, window_s=2.0, windows=2)
MEASURED_WITH = ("grpcio", "httptools", "orjson", "protobuf", "tokenfleet", "uvicorn", "uvloop")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)


@app.command()
def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="a smoke run of under a minute; keeps nothing")
    ] = False,
    rows: Annotated[str, typer.Option(help=f"some of {','.join(ROWS)}; keeps nothing")] = "",
    frames: Annotated[bool, typer.Option(help="plain frames between the services, or gRPC")] = True,
    bare: Annotated[bool, typer.Option(help="measure the bare server, too")] = True,
    profile: Annotated[bool, typer.Option("--profile", help="also draw a flame graph of each row")] = False,
    output: Annotated[Path | None, typer.Option(help="folder for results, also of a partial run")] = None,
) -> None:
    """Measures the gateway. Ends with 1 when a row is not valid."""
    chosen = _choose(rows or ",".join(QUICK_ROWS if quick else ROWS))
    bench = Bench(
        rows=chosen,
        schedule=QUICK if quick else FULL,
        bare_schedule=(QUICK_BARE if quick else FULL_BARE) if bare else None,
        frames=frames,
        profile=profile,
    )
    try:
        if profile:
            profiler()
        results, figures = asyncio.run(bench.run())
    except (LocalFleetError, NotResident, DriverError, NoProfiler, TooFewCores) as error:
        _explain(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        raise typer.Exit(130) from None
    figures |= figures_of(results)
    show_rows(console, results)
    show_figures(console, figures)
    folder = output or (None if quick or rows else RESULTS)
    if folder is not None:
        _keep(folder, "gateway" if frames else "gateway-grpc", results, figures)
    if not all(result.valid for result in results):
        raise typer.Exit(1)


class Bench:
    """One run: a fleet, its rows one after the other, the bare server beside the rows that want it."""

    def __init__(
        self,
        *,
        rows: list[Row],
        schedule: Schedule,
        bare_schedule: Schedule | None,
        frames: bool,
        profile: bool,
    ) -> None:
        self._rows = rows
        self._schedule = schedule
        self._bare_schedule = bare_schedule
        self._frames = frames
        self._profile = profile

    async def run(self) -> tuple[list[RowResult], dict[str, float]]:
        """The rows' results, and figures that belong to no row."""
        cores = choose_cores()
        os.sched_setaffinity(0, [cores.load])
        if not step_forward():
            console.print("[yellow]not allowed to raise the priority: other programs may show in all rows[/]")
        console.print(
            f"gateway on core {cores.measured}, everything else on core {cores.load}; starting the fleet …"
        )
        results: list[RowResult] = []
        async with fleet(STATE, cores, frames=self._frames) as system:
            if not await until_quiet(system.groups, QUIET_SHARE, QUIET_PATIENCE_S):
                console.print("[yellow]the fleet does not come to rest; its cost at rest is in every row[/]")
            idle = await measure_idle(system.groups, self._schedule.window_s)
            shares = ", ".join(f"{group} {share:.1%}" for group, share in idle.items())
            console.print(f"idle, of one core: {shares}")
            for row in self._rows:
                results += await self._measure(row, system, cores)
                if not results[-1].requests:
                    break  # the next row would fare no better
        return results, {"gateway_idle_core_share": idle[GATEWAY]}

    async def _measure(self, row: Row, system: System, cores: Cores) -> list[RowResult]:
        results = [await _announced(row, system, cores, self._schedule)]
        if not results[0].requests:
            return results
        if self._profile:
            console.print(f"  flame graph: {await profile_row(row, system, cores, STATE)}")
        if row.compared and self._bare_schedule is not None:
            async with bare_server(row, cores) as server:
                results.append(await _announced(row, server, cores, self._bare_schedule))
        return results


async def _announced(row: Row, system: System, cores: Cores, schedule: Schedule) -> RowResult:
    what = f"{row.concurrency} streams, a token every {row.itl_ms} ms" if row.stream else "one-token requests"
    console.print(f"{system.name}: {what}")

    def tell(window: Window) -> None:
        if row.stream:
            cost = f"{per(1e6 * window.cpu_s[GATEWAY], window.tokens):.1f} µs per token"
        else:
            cost = f"{per(1e6 * window.cpu_s[GATEWAY], window.requests):.0f} µs per request"
        console.print(f"  {cost}, load core {window.load_core_busy:.0%} busy", style="dim")

    result = await run_row(row, system, cores, schedule, tell)
    for problem in result.problems:
        console.print(f"  [bold red]not valid:[/] {problem}")
    return result


def _choose(names: str) -> list[Row]:
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in ROWS]:
        raise typer.BadParameter(f"no row is called {unknown[0]!r}; there are {', '.join(ROWS)}")
    return [row for name, row in ROWS.items() if name in wanted]


def _keep(folder: Path, stem: str, results: list[RowResult], figures: dict[str, float]) -> None:
    report = Report(
        command=" ".join(("python -m benchmarks.gateway", *sys.argv[1:])),
        figures=figures,
        rows=[result.as_dict() | {"priority": os.getpriority(os.PRIO_PROCESS, 0)} for result in results],
        versions=versions(*MEASURED_WITH) | {"engine": "sim"},
    )
    report.write(folder / f"{stem}.json")
    for path in (folder / f"{stem}.json", *plots.draw(results, folder, stem)):
        console.print(f"wrote {path}")


def _explain(error: Exception) -> None:
    console.print(f"[bold red]gateway benchmark:[/] {error}")
    console.print(f"the services' logs are in {STATE}/logs")


if __name__ == "__main__":
    app()
