"""Which loads are measured, and for how long.

The first requests of all streams are spread over a warm-up that takes about as long as all of them do, so
that a window sees requests at every stage. llama.cpp computes a prompt hardly faster than an answer: longer
requests would fill a whole window with the first prompts, where one step more or less decides. A window is as
long as one and a half of them, or its share of prompts and answers is chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """Windows alternate between the two systems, so many times."""

    streams: int
    pairs: int
    warmup_s: float
    window_s: float
    tokens: int = 48
    prompt_chars: int = 256


FULL: Mapping[str, Sequence[Part]] = {
    "vllm": (Part(1, 3, 2, 4), Part(16, 3, 6, 8), Part(64, 3, 14, 14)),
    "llamacpp": (Part(1, 3, 2, 4, 24, 64), Part(16, 3, 13, 13, 24, 64), Part(64, 2, 40, 60, 24, 64)),
}
QUICK = (Part(4, 1, 2, 4),)


def plans(engines: Sequence[str], streams: Sequence[int], quick: bool) -> dict[str, Sequence[Part]]:
    """`streams`: only these; empty: all."""
    return {
        engine: QUICK if quick else [part for part in FULL[engine] if not streams or part.streams in streams]
        for engine in engines
    }
