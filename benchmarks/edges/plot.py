"""Two pictures: the time between tokens, and the gateway's memory, while the crowd comes and goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks._report import BLUE, GREY, ORANGE, figure
from benchmarks.edges.figures import KEEPING_UP, SLOW
from benchmarks.edges.phases import Run, Window
from benchmarks.edges.plan import BUFFER_BYTES, CROWD, ITL_MS, NORMAL_STREAMS
from loadtest.driver.stats import percentile

_LOOKS = {
    SLOW: (ORANGE, "s", f"beside {CROWD:,} that do not read"),
    KEEPING_UP: (BLUE, "o", f"beside {CROWD:,} that keep up"),
}


def draw(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Answers the files."""
    return [_gaps(runs, folder / "edges-itl.png"), _memory(runs, folder / "edges-memory.png")]


def _gaps(runs: Sequence[Run], path: Path) -> Path:
    with figure(
        path,
        title=f"Time between the tokens of {NORMAL_STREAMS} ordinary streams",
        xlabel="seconds",
        ylabel="p99 over 2.5 s, ms",
    ) as axes:
        axes.axhline(ITL_MS, color=GREY, linestyle=":", linewidth=1, label="the engine's own pace")
        _lines(axes, runs, lambda window: 1e3 * percentile(window.gap_s, 99))
        axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
        axes.legend(loc="lower right")
    return path


def _memory(runs: Sequence[Run], path: Path) -> Path:
    with figure(path, title="Resident memory of the gateway", xlabel="seconds", ylabel="MB") as axes:
        _lines(axes, runs, lambda window: window.resident_mb)
        for run in runs:
            if run.crowd == KEEPING_UP:
                most = max(window.resident_mb for window in run.beside)
                label = "that, and the slow readers' buffers full"
                bound = most + CROWD * BUFFER_BYTES / 1e6
                axes.axhline(bound, color=GREY, linestyle="--", linewidth=1, label=label)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.legend(loc="lower right")
    return path


def _lines(axes: object, runs: Sequence[Run], value: Callable[[Window], float]) -> None:
    for run in runs:
        colour, marker, label = _LOOKS[run.crowd]
        windows = [window for window in (*run.alone, *run.beside, *run.after) if window.gap_s]
        axes.plot(  # type: ignore[attr-defined]
            [window.at_s for window in windows],
            [value(window) for window in windows],
            **{"color": colour, "marker": marker, "markersize": 3, "linewidth": 1.5, "label": label},
        )
        for edge in (run.beside[0].at_s, run.beside[-1].at_s):
            axes.axvline(edge, color=colour, alpha=0.25, linewidth=1)  # type: ignore[attr-defined]
