"""`python -m benchmarks.scheduler`: what the scheduler costs, and how well it chooses."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks._report import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RESULTS,
    VERMILION,
    Report,
    figure,
    rounded,
    versions,
)
from benchmarks.scheduler import scenarios, watching
from benchmarks.scheduler import trace as traces
from benchmarks.scheduler.arrivals import own_prompts
from benchmarks.scheduler.decisions import Bench
from benchmarks.scheduler.scenarios import POLICIES
from tokenfleet.core.scheduling.sampling import sample_interval_ms

WORKERS = (1, 10, 100, 300, 1000)
PROMPTS = (512, 2048, 8192, 32_768)
TRACE_SPEEDS = (8_000.0, 40_000.0)  # prompt tokens a second
LOADS = (0.7, 0.9, 1.1, 1.3, 1.5)  # as shares of what round robin can do
COLOURS = dict(zip(POLICIES, (BLUE, PURPLE, ORANGE, GREEN, VERMILION, GREY), strict=True))
MEASURED_WITH = ("numpy", "protobuf", "tokenfleet")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)


@app.command()
def main(
    keep: Annotated[bool, typer.Option(help="write the results")] = True,
    index_blocks: Annotated[int, typer.Option(help="in the large index")] = 10_000_000,
    trace: Annotated[Path | None, typer.Option(help="recorded traffic, in the format of Mooncake's")] = None,
    watching_only: Annotated[
        bool, typer.Option(help="measure again what following a fleet costs, and leave all else as it was")
    ] = False,
) -> None:
    """Costs in processor time, then choices in virtual time."""
    rows: list[dict[str, Any]] = []
    if watching_only:
        _watch_again(keep)
        return
    figures = _costs(rows, index_blocks) | _choices(rows)
    if trace is not None:
        figures |= _reuse(rows, trace)
    for name, value in figures.items():
        console.print(f"{name:44} {rounded(value):>10g}")
    if keep:
        command = "make bench-scheduler" + (f" TRACE={trace.name}" if trace is not None else "")
        report = Report(command, figures, rows, versions(*MEASURED_WITH) | {"engine": "model"})
        report.write(RESULTS / "scheduler.json")
        _draw(rows, RESULTS)


def _costs(rows: list[dict[str, Any]], index_blocks: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for policy in POLICIES:
        for workers in WORKERS:
            _decision(rows, Bench(policy, workers, 2**19), policy, workers, 8192)
    for prompt in PROMPTS:
        _decision(rows, Bench("predicted", 1000, 2**19), "predicted", 1000, prompt)
    exact = Bench("predicted", 1000, index_blocks)
    name = f"{index_blocks // 1_000_000}M"
    figures["decision_cpu_us@1000w_8k"] = statistics.median(exact.cpu_us(8192))
    figures[f"index_bytes@{name}"] = exact.policy.index.size_bytes  # type: ignore[attr-defined]
    figures["index_store_us_per_block"] = exact.store_cpu_us_per_block
    del exact
    approximate = Bench("predicted", 1000, 2**19, tells_cache=False)
    figures["decision_cpu_us/approximate@1000w_8k"] = statistics.median(approximate.cpu_us(8192))
    return figures | _watching(rows)


def _watching(rows: list[dict[str, Any]]) -> dict[str, float]:
    sample_us = statistics.median(watching.sample_cpu_us(1000))
    shares = watching.followed_core_share(1000)
    rows.append(
        {
            "kind": "watch",
            "workers": 1000,
            "interval_ms": sample_interval_ms(1000),
            "core_share": [rounded(share) for share in shares],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    return {
        "watch_sample_cpu_us": sample_us,
        "watch_core_share/without_grpc@1000w": watching.core_share(sample_us, 1000),
        "watch_core_share@1000w": statistics.median(shares),
    }


def _watch_again(keep: bool) -> None:
    """Puts these figures in the place of the former ones; their row says when."""
    rows: list[dict[str, Any]] = []
    figures = _watching(rows)
    for name, value in figures.items():
        console.print(f"{name:44} {rounded(value):>10g}")
    console.print(rows[0]["core_share"])
    if keep:
        path = RESULTS / "scheduler.json"
        report = json.loads(path.read_text(encoding="utf-8"))
        report["figures"] |= {name: rounded(value) for name, value in figures.items()}
        report["rows"] = [rows[0] if row["kind"] == "watch" else row for row in report["rows"]]
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _decision(rows: list[dict[str, Any]], bench: Bench, policy: str, workers: int, prompt: int) -> None:
    runs = bench.cpu_us(prompt)
    rows.append(
        {
            "kind": "decision",
            "policy": policy,
            "workers": workers,
            "prompt_tokens": prompt,
            "cpu_us": rounded(statistics.median(runs)),
            "runs": [rounded(run) for run in runs],
        }
    )


def _choices(rows: list[dict[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for policy in POLICIES:
        seen = scenarios.hot_spot(policy)
        rows.append({"kind": "shared_prompt", "policy": policy, **seen})
        suffix = "" if policy == "predicted" else f"/{policy}"
        figures[f"worst_over_mean/shared_prompt{suffix}"] = seen["requests"]
        figures[f"worst_over_mean/shared_prompt_prefill{suffix}"] = seen["prefill_tokens"]
        figures[f"ttft_p95_s/shared_prompt{suffix}"] = seen["ttft_p95_s"]
    told = scenarios.slow_worker(told=True)
    figures["slow_worker_p95_ttft_ratio"] = scenarios.slow_worker() / told
    figures["slow_worker_p95_ttft_ratio/least_loaded"] = scenarios.slow_worker("least_loaded") / told
    figures["slow_worker_p95_ttft_ratio/round_robin"] = scenarios.slow_worker("round_robin") / told
    both = [*own_prompts(18.0, 30.0, 1, zone="a"), *own_prompts(18.0, 30.0, 2, zone="b")]
    figures["zone_at_home_share"] = scenarios.at_home(scenarios.zoned().run(both))
    figures["zone_spill_s"], figures["zone_spill_share"] = scenarios.zone_spill()
    figures["zone_death_moved_share"], figures["zone_death_ttft_max_s"] = scenarios.zone_death()
    capacity = figures["round_robin_capacity_rps"] = scenarios.capacity()
    for load in LOADS:
        for policy in POLICIES:
            value = figures[f"goodput/{policy}@{load}"] = scenarios.goodput(policy, load * capacity)
            rows.append({"kind": "goodput", "policy": policy, "load": load, "goodput": value})
    return figures


def _reuse(rows: list[dict[str, Any]], path: Path) -> dict[str, float]:
    """How much of what a single cache would reuse eight workers do, at two speeds."""
    arrivals = traces.read_trace(path)
    figures: dict[str, float] = {}
    for speed in TRACE_SPEEDS:
        seen = traces.fleet_reuse(arrivals, speed)
        figures[f"prefix_hit_of_unlimited/{path.stem}@{speed / 1000:g}k"] = seen.of_unlimited
        figures[f"prefix_hit_ttft_p95_s/{path.stem}@{speed / 1000:g}k"] = seen.ttft_p95_s
        rows.append(
            {
                "kind": "trace",
                "source": path.name,
                "requests": len(arrivals),
                "prefill_tokens_per_s": speed,
                "hit_share": rounded(seen.hit_share),
                "unlimited_share": rounded(seen.unlimited_share),
                "completed": seen.completed,
            }
        )
    return figures


def _draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    decisions = [row for row in rows if row["kind"] == "decision"]
    with figure(
        folder / "scheduler-workers.png",
        title="A decision, prompt of 8,192 tokens",
        xlabel="workers",
        ylabel="µs of processor time",
    ) as axes:
        some = [row for row in decisions if row["prompt_tokens"] == 8192]
        _lines(axes, some, "workers", "cpu_us")
        axes.set_xscale("log")
    with figure(
        folder / "scheduler-prompts.png",
        title="A decision among 1,000 workers",
        xlabel="prompt tokens, half of them cached on eight workers",
        ylabel="µs of processor time",
    ) as axes:
        some = [row for row in decisions if row["policy"] == "predicted" and row["workers"] == 1000]
        _lines(axes, some, "prompt_tokens", "cpu_us")
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
    with figure(
        folder / "scheduler-goodput.png",
        title=f"Requests that met TTFT ≤ {scenarios.TTFT_OBJECTIVE_S:g} s and "
        f"ITL ≤ {1000 * scenarios.ITL_OBJECTIVE_S:g} ms",
        xlabel="offered, as a share of what round robin can do",
        ylabel="share of all offered",
    ) as axes:
        _lines(axes, [row for row in rows if row["kind"] == "goodput"], "load", "goodput")


def _lines(axes: Any, rows: Sequence[Mapping[str, Any]], across: str, up: str) -> None:
    """One for each policy."""
    for policy in POLICIES:
        points = sorted({row[across]: row[up] for row in rows if row["policy"] == policy}.items())
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS[policy], label=policy)
    axes.legend()


if __name__ == "__main__":
    app()
