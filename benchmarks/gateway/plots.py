"""Three pictures: cost against streams, cost against what shares a message, and time to the first token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._report import BLUE, GREEN, GREY, ORANGE, VERMILION, figure
from benchmarks.gateway.figures import BARE, FLEET
from benchmarks.gateway.peers import PEERS, SOURCE
from benchmarks.gateway.plan import SPARSE_ITL_MS
from benchmarks.gateway.rows import RowResult

LABEL_DISTANCE_US = 1.6


def draw(results: Sequence[RowResult], folder: Path, stem: str) -> list[Path]:
    """Draws what the valid rows allow; answers the files."""
    valid = [result for result in results if result.valid and result.streamed]
    by_count = [result for result in valid if result.row == str(result.connections)]
    sparse = [result for result in valid if result.system == FLEET and result.itl_ms == SPARSE_ITL_MS]
    made: list[Path] = []
    if by_count:
        made += [_cost(by_count, folder / f"{stem}-cpu.png"), _ttft(by_count, folder / f"{stem}-ttft.png")]
    if len(sparse) > 1:
        made.append(_sharing(sparse, folder / f"{stem}-sharing.png"))
    return made


def _cost(results: Sequence[RowResult], path: Path) -> Path:
    title = "Processor time of the gateway per streamed token"
    with figure(path, title=title, xlabel="concurrent streams", ylabel="µs of one core per token") as axes:
        heights = apart([peer.us_per_token_1000 for peer in PEERS], LABEL_DISTANCE_US)
        for peer, height in zip(PEERS, heights, strict=True):
            ends = (peer.us_per_token_256, peer.us_per_token_1000)
            axes.plot((256, 1000), ends, color=GREY, linewidth=1, linestyle="--", marker=".", zorder=1)
            axes.annotate(
                peer.name, (1000, height), xytext=(7, 0), textcoords="offset points", **_small(GREY)
            )
        _line(axes, _of(results, FLEET), "tokenfleet gateway", BLUE, "o")
        _line(axes, _of(results, BARE), "bare uvloop server, same run", GREEN, "s", below=True)
        _log_counts(axes, sorted({result.connections for result in results}), right=3.0)
        _from_zero(axes)
        axes.legend(loc="lower left")
        _note(axes, f"64-token streams, cost of each request included; {SOURCE}")
    return path


def _sharing(results: Sequence[RowResult], path: Path) -> Path:
    title = "The more sequences share a worker's message, the less a token costs"
    xlabel = f"sequences per worker stream (a token every {SPARSE_ITL_MS} ms)"
    with figure(path, title=title, xlabel=xlabel, ylabel="µs of one core per token") as axes:
        ordered = sorted(results, key=lambda result: result.sequences_per_worker_stream)
        counts = [result.sequences_per_worker_stream for result in ordered]
        axes.plot(
            counts, [result.cpu_us_per_token for result in ordered], color=BLUE, marker="o", linewidth=2
        )
        for result in ordered:
            _label(axes, result.sequences_per_worker_stream, result.cpu_us_per_token, BLUE)
        _log_counts(axes, counts, right=1.4)
        _from_zero(axes)
    return path


def _ttft(results: Sequence[RowResult], path: Path) -> Path:
    title = "Time added to the first token"
    with figure(path, title=title, xlabel="concurrent streams", ylabel="ms beyond the engine's own") as axes:
        rows = _of(results, FLEET)
        counts = [row.connections for row in rows]
        for name, values, colour, marker in (
            ("p50", [row.added_ttft_ms_p50 for row in rows], BLUE, "o"),
            ("p99", [row.added_ttft_ms_p99 for row in rows], VERMILION, "^"),
        ):
            axes.plot(counts, values, color=colour, marker=marker, linewidth=2, label=f"tokenfleet, {name}")
            for count, value in zip(counts, values, strict=True):
                _label(axes, count, value, colour)
        bare = _of(results, BARE)
        if bare:
            axes.plot(
                [row.connections for row in bare],
                [row.added_ttft_ms_p99 for row in bare],
                **{"color": ORANGE, "marker": "s", "linestyle": ":", "label": "bare server, p99"},
            )
        _log_counts(axes, sorted({result.connections for result in results}), right=1.4)
        _from_zero(axes)
        axes.legend(loc="best")
        _note(axes, "as the load generator sees it, which shares its core with the workers")
    return path


def apart(values: Sequence[float], distance: float) -> list[float]:
    """The values in their order, moved up as far as needed to be that far from each other."""
    moved = list(values)
    lowest = float("-inf")
    for position in sorted(range(len(values)), key=values.__getitem__):
        lowest = moved[position] = max(values[position], lowest + distance)
    return moved


def _of(results: Sequence[RowResult], system: str) -> list[RowResult]:
    return sorted((r for r in results if r.system == system), key=lambda result: result.connections)


def _line(
    axes: Any, results: Sequence[RowResult], name: str, colour: str, marker: str, *, below: bool = False
) -> None:
    counts = [result.connections for result in results]
    values = [result.cpu_us_per_token for result in results]
    axes.plot(counts, values, color=colour, marker=marker, linewidth=2, label=name, zorder=3)
    for count, value in zip(counts, values, strict=True):
        _label(axes, count, value, colour, offset=-10 if below else 8)


def _label(axes: Any, x: float, y: float, colour: str, *, offset: float = 8) -> None:
    place = {"xytext": (0, offset), "textcoords": "offset points", "ha": "center"}
    axes.annotate(f"{y:.1f}", (x, y), **place, **_small(colour))


def _small(colour: str) -> dict[str, Any]:
    return {"fontsize": 8, "color": colour, "va": "center"}


def _log_counts(axes: Any, counts: Sequence[int], *, right: float) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(counts), [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlim(min(counts) / 1.2, max(counts) * right)


def _from_zero(axes: Any) -> None:
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])


def _note(axes: Any, text: str) -> None:
    axes.annotate(text, (0, -0.16), xycoords="axes fraction", fontsize=8, color=GREY, annotation_clip=False)
