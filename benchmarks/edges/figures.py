"""Phases to named figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.edges.phases import Run, Window
from benchmarks.edges.plan import BUFFER_BYTES, CROWD, Habit
from loadtest.driver.stats import percentile

SLOW, KEEPING_UP = "slow", "keeping-up"


def figures_of(runs: Mapping[str, Run]) -> dict[str, float]:
    """Figures of the runs that were made."""
    figures: dict[str, float] = {}
    if slow := runs.get(SLOW):
        alone, beside = itl_ms_p99([*slow.alone, *slow.after]), itl_ms_p99(slow.beside)
        figures |= {
            "normal_itl_ms_p99_alone": alone,
            "normal_itl_ms_p99_beside_slow": beside,
            "slow_readers_itl_ratio": beside / alone,
            "gateway_rss_mb_idle": slow.idle_mb,
            "gateway_rss_mb_alone": most_resident_mb(slow.alone),
            "gateway_rss_mb_beside_slow": most_resident_mb(slow.beside),
            "kernel_tcp_mb_beside_slow": max(w.kernel_tcp_mb for w in slow.beside)
            - min(w.kernel_tcp_mb for w in slow.alone),
            "gateway_core_share_alone": mean_share(slow.alone),
            "gateway_core_share_beside_slow": mean_share(slow.beside),
            "slow_readers_disconnected": float(slow.codes.get("slow_consumer", 0)),
            "slow_readers_completed": float(sum(end["complete"] for end in slow.ends.values())),
            "slow_readers_frames_per_token": slow.ends[Habit.BYTEWISE]["frames_per_token"] or 0.0,
        }
    if other := runs.get(KEEPING_UP):
        figures |= {
            "normal_itl_ms_p99_beside_keeping_up": itl_ms_p99(other.beside),
            "gateway_rss_mb_beside_keeping_up": most_resident_mb(other.beside),
            "gateway_core_share_beside_keeping_up": mean_share(other.beside),
            "gateway_rss_mb_bound": most_resident_mb(other.beside) + CROWD * BUFFER_BYTES / 1e6,
        }
    return figures


def itl_ms_p99(windows: Sequence[Window]) -> float:
    return 1e3 * percentile([gap for window in windows for gap in window.gap_s], 99)


def most_resident_mb(windows: Sequence[Window]) -> float:
    return max(window.resident_mb for window in windows)


def mean_share(windows: Sequence[Window]) -> float:
    return sum(window.gateway_share for window in windows) / len(windows)
