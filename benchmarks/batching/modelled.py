"""Both ways under a virtual clock: the same steps at the same prices, and nothing else that differs."""

from __future__ import annotations

from benchmarks.batching.load import Asked, Served, poisson
from tokenfleet.core.engine_model import (
    BatchingModel,
    EngineModel,
    ModelSequence,
    PrefixCache,
    StaticModel,
    StepTiming,
)
from tokenfleet.core.micro_batching import MicroBatcher

MAX_SEQUENCES = 16
REQUESTS = 600
CONTEXT = 4_096
TIMING = StepTiming()


def continuous() -> EngineModel:
    return BatchingModel(TIMING, MAX_SEQUENCES, _cache())


def static(
    window_ms: float, *, max_batch: int = MAX_SEQUENCES, max_padding: float = 1.0, compact: bool = True
) -> EngineModel:
    batcher = MicroBatcher(
        window_s=window_ms / 1e3,
        max_batch=max_batch,
        capacity_tokens=MAX_SEQUENCES * CONTEXT,
        max_padding=max_padding,
    )
    return StaticModel(TIMING, batcher, _cache(), compact=compact)


def load(rate: float) -> list[Asked]:
    """Requests a second; 0: a burst, which shows what the engine can do at most."""
    return poisson(rate, REQUESTS, prompt=(200, 0.9, 2_048), answer=128, longest_answer=1_024)


def serve(engine: EngineModel, asked: list[Asked]) -> Served:
    served = Served(asked)
    coming = list(enumerate(asked))[::-1]
    while True:
        due = engine.next_event_at()
        if coming and (due is None or coming[-1][1].at <= due):
            key, one = coming.pop()
            engine.submit(one.at, ModelSequence(key, one.prompt_tokens, one.answer_tokens, lambda: 1))
        elif due is not None:
            for key, ids in engine.advance(due).tokens:
                served.token(key, due, len(ids))
        else:
            break
    if isinstance(engine, StaticModel):
        served.padding = 1 - engine.useful / engine.computed
    return served


def _cache() -> PrefixCache:
    return PrefixCache(MAX_SEQUENCES * CONTEXT // 16, 16)
