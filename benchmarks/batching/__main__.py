"""`python -m benchmarks.batching`: what static batching costs, and what a window and buckets give back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks._report import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RESULTS,
    VERMILION,
    Report,
    figure,
    rounded,
    versions,
)
from benchmarks.batching import modelled, real
from tokenfleet.core.engine_model import EngineModel

SYSTEMS: dict[str, Callable[[], EngineModel]] = {
    "continuous": modelled.continuous,
    "static_20ms": lambda: modelled.static(20),
    "static_30ms": lambda: modelled.static(30),
    "static_40ms": lambda: modelled.static(40),
    "static_0ms": lambda: modelled.static(0),
    "static_30ms_half_padding": lambda: modelled.static(30, max_padding=0.5),
    "static_30ms_rows_stay": lambda: modelled.static(30, compact=False),
    "one_by_one": lambda: modelled.static(0, max_batch=1),
}
DRAWN = dict(
    zip(
        ("continuous", "static_30ms", "static_0ms", "static_30ms_rows_stay", "one_by_one"),
        (BLUE, ORANGE, GREEN, VERMILION, GREY),
        strict=True,
    )
)
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 6.0)  # requests a second
REAL = {"one_by_one": (0.0, 1), "static_20ms": (20.0, 8), "static_30ms": (30.0, 8), "static_40ms": (40.0, 8)}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)


@app.command()
def main(
    keep: Annotated[bool, typer.Option(help="write the results")] = True,
    with_model: Annotated[bool, typer.Option(help="measure the real engine too")] = True,
) -> None:
    """The model in virtual time, then the engine itself where it is installed."""
    rows: list[dict[str, Any]] = []
    figures = _modelled(rows)
    measured_with = ["numpy", "tokenfleet"]
    if with_model and find_spec("torch") is not None:
        figures |= _real(rows)
        measured_with += ["torch", "transformers"]
    for name, value in figures.items():
        console.print(f"{name:60} {rounded(value):>10g}")
    if keep:
        report = Report("make bench-batching", figures, rows, versions(*measured_with))
        report.write(RESULTS / "batching.json")
        _draw(rows, RESULTS)


def _modelled(rows: list[dict[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for system, engine in SYSTEMS.items():
        most = modelled.serve(engine(), modelled.load(0)).row()
        rows.append({"kind": "burst", "system": system, **most})
        figures[f"tokens_per_s/{system}"] = most["tokens_per_s"]
        figures[f"padding_share/{system}"] = most["padding_share"]
        for rate in RATES:
            row = modelled.serve(engine(), modelled.load(rate)).row()
            rows.append({"kind": "modelled", "system": system, "rate": rate, **row})
            if rate in (0.5, 2.0, 4.0):
                for part in ("p50", "p95", "p99"):
                    figures[f"ttft_s_{part}/{system}@{rate:g}rps"] = row[f"ttft_{part}_s"]
    figures["static_over_continuous/tokens_per_s"] = (
        figures["tokens_per_s/static_30ms"] / figures["tokens_per_s/continuous"]
    )
    return figures


def _real(rows: list[dict[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    model = real.model()
    real.serve(model, 0, 1, real.load()[:1])  # what happens once
    for system, (window_ms, max_batch) in REAL.items():
        row = real.serve(model, window_ms, max_batch, real.load()).row()
        rows.append({"kind": "transformers", "system": system, **row})
        figures[f"tokens_per_cpu_s/transformers/{system}"] = row["tokens_per_s"]
        figures[f"ttft_cpu_s_p50/transformers/{system}"] = row["ttft_p50_s"]
        figures[f"ttft_cpu_s_p95/transformers/{system}"] = row["ttft_p95_s"]
    return figures


def _draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    with figure(
        folder / "batching-ttft.png",
        title="Time to the first token, the same engine batching in different ways",
        xlabel="requests a second",
        ylabel="p95, seconds",
    ) as axes:
        for system, colour in DRAWN.items():
            points = [
                (row["rate"], row["ttft_p95_s"])
                for row in rows
                if row["kind"] == "modelled" and row["system"] == system
            ]
            axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=system)
        axes.set_yscale("log")
        axes.legend()


if __name__ == "__main__":
    app()
