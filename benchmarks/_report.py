"""How every benchmark says what it found: one JSON file of one shape, and plots of one style beside it."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
# Distinguishable in greyscale and by people who see few colours (Okabe and Ito).
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8A8A8A"
PURPLE = "#CC79A7"

_FIGURE_NAME = re.compile(r"[a-z][a-z0-9_]*([@/][A-Za-z0-9_.=+-]+)*")


@dataclass(frozen=True, slots=True)
class Report:
    """`figures` is flat, so that a figure can be named in one word wherever it is quoted."""

    command: str
    figures: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]]
    versions: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Raises ValueError for a figure that is misnamed or no finite number."""
        for name, value in self.figures.items():
            if not _FIGURE_NAME.fullmatch(name):
                raise ValueError(f"figure {name!r}: use lower case, digits, _ and then @ or / parts")
            if not math.isfinite(value):
                raise ValueError(f"figure {name}: {value!r} is no finite number")
        return {
            "machine": machine(),
            "versions": dict(self.versions),
            "command": self.command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "figures": {name: rounded(value) for name, value in self.figures.items()},
            "rows": [dict(row) for row in self.rows],
        }

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")


def rounded(value: float) -> float:
    """To four significant digits, which is more than any of these measurements holds."""
    return float(f"{value:.4g}")


def machine() -> dict[str, Any]:
    """What the figures depend on, and nothing that names the machine."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "architecture": platform.machine(),
    }


def versions(*distributions: str) -> dict[str, str]:
    """The interpreter and the named distributions, as installed."""
    found = {name: metadata.version(name) for name in distributions}
    return {"python": platform.python_version(), **found}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


@contextmanager
def figure(path: Path, *, title: str, xlabel: str, ylabel: str) -> Iterator[Any]:
    """Matplotlib axes in the common style, saved to `path` at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "font.size": 10.0,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "svg.hashsalt": "tokenfleet",
    }
    with mpl.rc_context(style):
        drawing, axes = pyplot.subplots(figsize=(8, 4.6), layout="constrained")
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, dpi=144)
        pyplot.close(drawing)
