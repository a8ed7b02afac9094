"""`python -m benchmarks.residency`: least recently used against demand-aware, in virtual time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks._report import BLUE, ORANGE, RESULTS, Report, figure, rounded, versions
from benchmarks.residency.workload import Load, Outcome, run

POLICIES = ("lru", "demand")
COLOURS = {"lru": ORANGE, "demand": BLUE}
SKEWS = (0.6, 0.9, 1.2)
ROOMS = (0.25, 0.5, 0.75)
SEEDS = 1
SECONDS = 1800.0
# The measures of an outcome that are told, and what they are called on a plot.
MEASURES = {
    "hit_rate": "requests that found their model loaded",
    "wait_p95_s": "95th percentile of the wait for a model, s",
    "gb_loaded": "GB loaded in half an hour",
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)


@app.command()
def main(
    keep: Annotated[bool, typer.Option(help="write the results")] = True,
    quick: Annotated[bool, typer.Option(help="a smoke run: one seed, five minutes, one load")] = False,
) -> None:
    """Half an hour of requests, by skew, by how much of the models fits, and with changing demand."""
    loads = [Load(skew, room) for skew in SKEWS for room in ROOMS]
    loads += [Load(0.9, 0.5, shifts=True)]
    seeds, seconds = (1, 300.0) if quick else (SEEDS, SECONDS)
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    for load in loads[:1] if quick else loads:
        for policy in POLICIES:
            outcomes = [run(load, policy, seed, seconds) for seed in range(seeds)]
            rows.append(_row(load, policy, outcomes))
            figures |= {f"{name}/{policy}/{load.name}": rows[-1][name] for name in MEASURES}
            console.print(f"{load.name:34} {policy:7}", *(f"{rows[-1][name]:9.3f}" for name in MEASURES))
    figures |= _means(rows)
    for name in (name for name in figures if name.count("/") < 2):
        console.print(f"{name:44} {rounded(figures[name]):>10g}")
    if keep and not quick:
        command = "make bench-residency"
        Report(command, figures, rows, versions("tokenfleet")).write(RESULTS / "residency.json")
        _draw(rows, RESULTS)


def _row(load: Load, policy: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    names = ("hit_rate", "wait_p95_s", "wait_mean_s", "gb_loaded", "loads", "failed", "requests")
    means = {name: statistics.fmean(getattr(one, name) for one in outcomes) for name in names}
    return {
        "policy": policy,
        "skew": load.skew,
        "room": load.room,
        "shifting": load.shifts,
        "seeds": len(outcomes),
        **{name: rounded(value) for name, value in means.items()},
        "hit_rates": [rounded(one.hit_rate) for one in outcomes],
    }


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Over all loads; and how many times what least recently used takes."""
    names = ("hit_rate", "wait_p95_s", "wait_mean_s", "gb_loaded")
    means = {
        f"{name}/{policy}": statistics.fmean(row[name] for row in rows if row["policy"] == policy)
        for name in names
        for policy in POLICIES
    }
    ratios = {f"{name}_ratio": means[f"{name}/demand"] / means[f"{name}/lru"] for name in names[1:]}
    return means | ratios


def _draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    for name, label in MEASURES.items():
        with figure(
            folder / f"residency-{name.replace('_', '-')}.png",
            title="Twenty models on four workers, Zipf's exponent beside the lines",
            xlabel="part of all models that fits",
            ylabel=label,
        ) as axes:
            for policy in POLICIES:
                for skew in SKEWS:
                    _line(axes, rows, name, policy, skew)
            axes.set_xticks(ROOMS)
            axes.set_ylim(bottom=0)
            axes.legend()


def _line(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, policy: str, skew: float) -> None:
    points = [
        (row["room"], row[name])
        for row in rows
        if (row["policy"], row["skew"], row["shifting"]) == (policy, skew, False)
    ]
    label = policy if skew == SKEWS[0] else None
    axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS[policy], label=label)
    axes.annotate(f"{skew:g}", points[-1], textcoords="offset points", xytext=(6, -3), fontsize=8)


if __name__ == "__main__":
    app()
