"""The overhead's figures: neighbours are compared, and the median of their ratios counts."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.overhead.__main__ import draw, figures_of


def row(system: str, pair: int, speed: float, streams: int = 16) -> dict[str, Any]:
    return {
        "engine": "vllm",
        "system": system,
        "pair": pair,
        "streams": streams,
        "tokens_per_s": speed,
        "tokens_per_engine_cpu_s": 100.0 + pair * (system == "fleet"),
        "ttft_ms_p50": 100.0 + pair if system == "fleet" else None,
    }


def test_ratios_are_those_of_neighbours(tmp_path: Path) -> None:
    # the machine halves its speed in the second pair; who comes first alternates
    rows = [row("bare", 0, 100), row("fleet", 0, 98), row("fleet", 1, 50), row("bare", 1, 50)]
    rows += [row("bare", 2, 100), row("fleet", 2, 90), row("bare", 0, 20, 1), row("fleet", 0, 21, 1)]
    figures = figures_of(rows)
    assert figures["tokens_per_s_ratio/vllm@16"] == pytest.approx(0.98)
    assert figures["tokens_per_s_ratio/vllm@1"] == pytest.approx(1.05)
    assert figures["tokens_per_engine_cpu_s_ratio/vllm@16"] == pytest.approx(1.01)
    assert figures["tokens_per_s/fleet/vllm@16"] == 90
    assert figures["ttft_ms_p50/fleet/vllm@16"] == 101
    assert "ttft_ms_p50/bare/vllm@16" not in figures
    draw(figures, tmp_path / "overhead.png")
    assert (tmp_path / "overhead.png").stat().st_size > 10_000
