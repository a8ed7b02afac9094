"""`python -m benchmarks.edges`: measures, shows, and keeps the results."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from benchmarks._cores import Cores, TooFewCores, choose_cores
from benchmarks._measure import until_quiet
from benchmarks._priority import step_forward
from benchmarks._proc import resident_mb
from benchmarks._report import RESULTS, Report, rounded, versions
from benchmarks.edges import plot
from benchmarks.edges.crowds import CrowdError, SlowReaders, keeping_up, slow_readers
from benchmarks.edges.figures import figures_of, itl_ms_p99
from benchmarks.edges.phases import Run, Watch, Window
from benchmarks.edges.plan import (
    CLIENT_BUFFER_BYTES,
    ITL_MS,
    NORMAL_STREAMS,
    NORMAL_TOKENS,
    UNSENT_BYTES,
)
from benchmarks.gateway.plan import model_name
from benchmarks.gateway.systems import GATEWAY, NotResident, System, fleet
from loadtest.driver.control import DriverError, DriverProcess
from loadtest.driver.load import Load
from loadtest.driver.stats import percentile
from tokenfleet.cli.local_fleet import LocalFleetError

STATE = Path(".tokenfleet/bench-edges").absolute()
FLAGS = (
    *("--unsent-bytes", str(UNSENT_BYTES)),
    *("--client-buffer-bytes", str(CLIENT_BUFFER_BYTES)),
    *("--write-timeout-s", "120"),  # it is the buffers that are to be filled
)
WARMUP_S, ALONE_S, HELD_S, AFTER_S = 8.0, 30.0, 48.0, 20.0
NOISY = 1.4  # times the engine's pace, alone
QUIET_SHARE, QUIET_PATIENCE_S = 0.08, 20.0
MEASURED_WITH = ("httptools", "orjson", "tokenfleet", "uvicorn", "uvloop", "websockets")
MODEL = model_name(ITL_MS)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)


@app.command()
def main(
    keep: Annotated[bool, typer.Option(help="write the results")] = True,
    crowds: Annotated[str, typer.Option(help="slow, keeping-up or both")] = "slow,keeping-up",
) -> None:
    """Measures ordinary streams beside slow readers. Ends with 1 when an ordinary one failed."""
    try:
        cores = choose_cores()
        os.sched_setaffinity(0, [cores.load])
        if not step_forward():
            console.print("[yellow]not allowed to raise the priority: other programs may show in the tail[/]")
        runs = [asyncio.run(_run(crowd, cores)) for crowd in crowds.split(",")]
    except (LocalFleetError, NotResident, DriverError, CrowdError, TooFewCores) as error:
        console.print(f"[bold red]edges benchmark:[/] {error}\nthe services' logs are in {STATE}/logs")
        raise typer.Exit(1) from None
    noisy = False
    for run in runs:
        alone = itl_ms_p99([*run.alone, *run.after])
        if alone > NOISY * ITL_MS:
            noisy = True
            console.print(
                f"[bold red]not valid:[/] alone the p99 is {alone:.0f} ms already, with an engine that needs "
                f"{ITL_MS}: the machine is busy with something else"
            )
    figures = figures_of({run.crowd: run for run in runs})
    for name, value in figures.items():
        console.print(f"{name:48} {rounded(value):>10g}")
    if keep and not noisy:
        report = Report(
            command="make bench-edges",
            figures=figures,
            rows=[_row(run) for run in runs],
            versions=versions(*MEASURED_WITH) | {"engine": "sim"},
        )
        report.write(RESULTS / "edges.json")
        for path in (RESULTS / "edges.json", *plot.draw(runs, RESULTS)):
            console.print(f"wrote {path.relative_to(Path.cwd())}")
    if noisy or any(run.failed for run in runs):
        raise typer.Exit(1)


async def _run(crowd: str, cores: Cores) -> Run:
    console.print(f"{NORMAL_STREAMS} ordinary streams, then beside 1,000 readers: {crowd}")
    async with fleet(STATE, cores, frames=True, gateway_flags=FLAGS) as system:
        step_forward(pid for pids in system.groups.values() for pid in pids)
        await until_quiet(system.groups, QUIET_SHARE, QUIET_PATIENCE_S)
        idle_mb = resident_mb(system.groups[GATEWAY])
        async with DriverProcess(_normal(system), [cores.load]) as driver:
            step_forward([driver.pid])
            watch = Watch(driver, system.groups[GATEWAY], cores)
            await asyncio.sleep(WARMUP_S)
            run = Run(crowd, await watch.during(ALONE_S), [], [], idle_mb)
            async with AsyncExitStack() as stack:
                if crowd == "slow":
                    readers = await stack.enter_async_context(slow_readers(system, MODEL, cores))
                    step_forward([readers.pid])
                    run.beside = await watch.until(asyncio.ensure_future(_hold(readers)))
                    run.ends = readers.result
                else:
                    other = await stack.enter_async_context(keeping_up(system, MODEL, cores))
                    step_forward([other.pid])
                    run.beside = await watch.during(HELD_S + 10)
                    run.ends = {"snapshot": (await other.snapshot()).failed}
            run.codes = await _codes(system)
            run.after = await watch.during(AFTER_S)
            run.failed = (await driver.stop()).errors
    _tell(run)
    return run


async def _hold(readers: SlowReaders) -> None:
    await readers.until_open()
    await asyncio.sleep(HELD_S)
    await readers.release()


def _normal(system: System) -> Load:
    return Load(
        host=system.host,
        port=system.port,
        model=MODEL,
        concurrency=NORMAL_STREAMS,
        max_tokens=NORMAL_TOKENS,
        stagger_s=NORMAL_TOKENS * ITL_MS / 1000,
        every_gap=True,
    )


async def _codes(system: System) -> dict[str, int]:
    """How the gateway says that its requests ended."""
    name = "tokenfleet_gateway_requests_total{"
    async with httpx.AsyncClient() as client:
        lines = (await client.get(f"http://{system.host}:{system.port}/metrics")).text.splitlines()
    found = (line.split('"') for line in lines if line.startswith(name))
    return {parts[1]: int(float(parts[2].removeprefix("}"))) for parts in found}


def _tell(run: Run) -> None:
    for name, windows in (("alone", run.alone), ("beside", run.beside), ("after", run.after)):
        gaps = [gap for window in windows for gap in window.gap_s]
        shares = [window.gateway_share for window in windows]
        busy = [window.load_core_busy for window in windows]
        console.print(
            f"  {name:7} ITL p50 {1e3 * percentile(gaps, 50):.1f}, p99 {1e3 * percentile(gaps, 99):.1f} ms; "
            f"gateway {max(shares):.0%} of its core at most, load core {max(busy):.0%}; "
            f"{max(window.resident_mb for window in windows):.0f} MB",
            style="dim",
        )
    console.print(f"  the crowd: {run.ends}; requests by code: {run.codes}", style="dim")
    for reason, count in run.failed.items():
        console.print(f"  [bold red]{count} × {reason}[/]")


def _row(run: Run) -> dict[str, Any]:
    def summary(window: Window) -> dict[str, float]:
        gaps = window.gap_s
        values = {
            "at_s": window.at_s,
            "itl_ms_p50": 1e3 * percentile(gaps, 50) if gaps else 0.0,
            "itl_ms_p99": 1e3 * percentile(gaps, 99) if gaps else 0.0,
            "resident_mb": window.resident_mb,
            "kernel_tcp_mb": window.kernel_tcp_mb,
            "gateway_core_share": window.gateway_share,
            "load_core_busy": window.load_core_busy,
        }
        return {name: rounded(value) for name, value in values.items()}

    phases = {"alone": run.alone, "beside": run.beside, "after": run.after}
    return {
        "crowd": run.crowd,
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "ends": run.ends,
        "requests_by_code": run.codes,
        "failed": run.failed,
        "windows": {name: [summary(window) for window in windows] for name, windows in phases.items()},
    }


if __name__ == "__main__":
    app()
