import asyncio
from collections.abc import Sequence
from typing import Any

from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.engines.base import Delta, Finished, Logprobs
from tokenfleet.worker.engines.gathered_step import GatheredStep

Step = tuple[list[Delta], list[Finished], list[Logprobs]]
ENDED = Finished(2, common_pb2.FINISH_REASON_STOP)


class Kept:
    """A sink of steps alone."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(
        self, deltas: Sequence[Delta], finished: Sequence[Finished], logprobs: Sequence[Logprobs] = ()
    ) -> None:
        self.steps.append((list(deltas), list(finished), list(logprobs)))


def gathering() -> tuple[GatheredStep, Kept]:
    kept: Any = Kept()
    return GatheredStep(kept), kept


async def test_what_arrives_in_one_turn_leaves_together() -> None:
    step, kept = gathering()
    logprobs = (1, worker_pb2.TokenLogprobs(token_id=5))
    step.tokens(1, [5])
    step.logprobs([logprobs])
    step.tokens(2, [7, 8])
    step.ended(ENDED)
    assert kept.steps == []
    await asyncio.sleep(0)
    assert kept.steps == [([(1, [5]), (2, [7, 8])], [ENDED], [logprobs])]
    step.tokens(1, [6])
    await asyncio.sleep(0)
    assert kept.steps[1:] == [([(1, [6])], [], [])]


async def test_what_must_not_be_overtaken_leaves_at_once_and_once() -> None:
    step, kept = gathering()
    step.ended(ENDED)
    step.flush()
    assert kept.steps == [([], [ENDED], [])]
    step.flush()
    await asyncio.sleep(0)
    assert len(kept.steps) == 1
