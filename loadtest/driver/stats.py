"""What the driver counts, and the few statistics that its readers draw from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

ERRORS_KEPT = 8


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile (0–100), interpolated linearly between neighbours; of nothing: ValueError."""
    if not values:
        raise ValueError("no values to take a percentile of")
    if not 0 <= q <= 100:
        raise ValueError(f"a percentile lies between 0 and 100, not at {q}")
    ordered = sorted(values)
    position = (len(ordered) - 1) * q / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(slots=True)
class Snapshot:
    """Counters since the start of the load; samples (seconds) since the last snapshot."""

    time_s: float = 0.0
    started: int = 0
    finished: int = 0
    failed: int = 0
    # text frames as they arrive, and what the finished answers held: frames ÷ tokens from the latter
    content_frames: int = 0
    finished_frames: int = 0
    finished_tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    ttft_s: list[float] = field(default_factory=list)
    itl_s: list[float] = field(default_factory=list)
    worst_gap_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)  # of all answers, where the load asks for it
    latency_s: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Tally:
    """The live counters: plain attributes, since the hot path adds to one of them for each read."""

    def __init__(self) -> None:
        self.started = 0
        self.finished = 0
        self.failed = 0
        self.content_frames = 0
        self.finished_frames = 0
        self.finished_tokens = 0
        self.errors: Counter[str] = Counter()
        self._ttft: list[float] = []
        self._itl: list[float] = []
        self._gap: list[float] = []
        self._latency: list[float] = []
        self.gaps: list[float] = []

    def succeed(self, *, tokens: int, frames: int, latency_s: float) -> None:
        self.finished += 1
        self.finished_tokens += tokens
        self.finished_frames += frames
        self._latency.append(latency_s)

    def pace(self, *, ttft_s: float | None, itl_s: float, worst_gap_s: float) -> None:
        """`ttft_s` None: the stream's first text did not come with its first token."""
        if ttft_s is not None:
            self._ttft.append(ttft_s)
        self._itl.append(itl_s)
        self._gap.append(worst_gap_s)

    def fail(self, reason: str) -> None:
        self.failed += 1
        if reason not in self.errors and len(self.errors) >= ERRORS_KEPT:
            reason = "others"
        self.errors[reason] += 1

    def snapshot(self, now: float) -> Snapshot:
        taken = Snapshot(
            time_s=now,
            started=self.started,
            finished=self.finished,
            failed=self.failed,
            content_frames=self.content_frames,
            finished_frames=self.finished_frames,
            finished_tokens=self.finished_tokens,
            errors=dict(self.errors),
            ttft_s=self._ttft,
            itl_s=self._itl,
            worst_gap_s=self._gap,
            latency_s=self._latency,
            gap_s=self.gaps,
        )
        self._ttft, self._itl, self._gap, self._latency = [], [], [], []
        self.gaps = []
        return taken
