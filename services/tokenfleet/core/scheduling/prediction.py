"""What the predicting policy can be told, known without its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

PREDICTED = "predicted"


@dataclass(slots=True, frozen=True)
class PredictionSettings:
    """`zone_penalty_s`: how much slower an answer at home may be before another zone is asked for it.
    `index_bytes`: the most that the index of prefixes may take."""

    zone_penalty_s: float = 0.25
    index_bytes: int = 256 * 1024 * 1024
