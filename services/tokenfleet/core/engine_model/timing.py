"""How long engine steps take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepTiming:
    """A linear model of one step: what a step costs anyhow, per sequence, per cached token read, per prefill.

    That is the shape measured on real engines: decoding is bound by reading weights once and each sequence's
    KV cache, prefill by computation. Seconds and tokens.
    """

    base_s: float = 0.010
    per_sequence_s: float = 0.000_1
    per_context_token_s: float = 0.000_000_02
    prefill_tokens_per_s: float = 8_000.0
    prefill_chunk_tokens: int = 2_048  # most prompt tokens computed in one step

    def step_s(self, batch: int, context_tokens: int, prefill_tokens: int) -> float:
        return (
            self.base_s
            + self.per_sequence_s * batch
            + self.per_context_token_s * context_tokens
            + prefill_tokens / self.prefill_tokens_per_s
        )


@dataclass(frozen=True, slots=True)
class FixedTiming:
    """Times that depend on nothing: what a benchmark of everything around the engine needs."""

    ttft_s: float = 0.005
    itl_s: float = 0.010
