"""The engine itself on the small real model: its own micro-batcher and steps, on a clock of processor time.

One thread computes, so the processor's time is what a step takes on a machine that is otherwise idle; while
nothing is to be done the clock jumps. So the figures hold on a busy machine too.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.batching.load import Asked, Served, poisson
from tests import real_model
from tokenfleet.core.micro_batching import MicroBatcher

REQUESTS = 24
RATE = 2.0
MAX_BATCH = 8


def load() -> list[Asked]:
    return poisson(RATE, REQUESTS, prompt=(48, 0.7, 192), answer=24, longest_answer=64)


def model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    folder = real_model.cache().folder(real_model.spec())
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True).eval()


def serve(model: Any, window_ms: float, max_batch: int, asked: list[Asked]) -> Served:
    from tokenfleet.worker.engines.transformers.stepper import Stepper

    clock = _Clock()
    batcher = MicroBatcher(window_s=window_ms / 1e3, max_batch=max_batch, capacity_tokens=16_384)
    stepper = Stepper(
        model,
        batcher,
        eos_ids=frozenset(),
        block_size=16,
        prefix_blocks=0,
        prefill_chunk_tokens=512,
        clock=clock.now,
    )
    served, coming = Served(asked), list(enumerate(asked))[::-1]
    while True:
        while coming and coming[-1][1].at <= clock.now():
            key, one = coming.pop()
            stepper.submit(_request(key, one))
        wait = stepper.wait_s()
        if wait == 0:
            for key, ids in stepper.step().deltas:
                served.token(key, clock.now(), len(ids))
        elif wait is None and not coming:
            break
        else:
            waits = [
                one for one in (wait, coming[-1][1].at - clock.now() if coming else None) if one is not None
            ]
            clock.skip(min(waits))
    return served


def _request(key: int, one: Asked) -> dict[str, Any]:
    ids = [100 + (key * 7 + place * 13) % 5_000 for place in range(one.prompt_tokens)]
    return {
        "key": key,
        "ids": ids,
        "prompt_tokens": len(ids),
        "max_tokens": one.answer_tokens,
        "sampling": {"temperature": 0, "ignore_eos": True},
    }


class _Clock:
    def __init__(self) -> None:
        self._began = time.process_time()
        self._skipped = 0.0

    def now(self) -> float:
        return time.process_time() - self._began + self._skipped

    def skip(self, seconds: float) -> None:
        self._skipped += max(0.0, seconds) + 1e-6
