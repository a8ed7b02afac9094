"""Runs sequences to their end across placements, failures and workers.

A sequence is placed, submitted, and ends with a terminal record. When that record says that the worker or its
engine failed, the next attempt submits the prompt and everything generated so far to another worker, which
goes on where the first one broke off. The client sees at most a pause. Failures are counted in a row without
a token between them: a long answer may survive many workers, an unservable one fails soon.
"""

from __future__ import annotations

import asyncio
import random

from tokenfleet.gateway.fallback import UNAVAILABLE, ModelUnavailable, too_slow
from tokenfleet.gateway.metrics import GatewayMetrics
from tokenfleet.gateway.router_client import RouterClient
from tokenfleet.gateway.sequence import Attempt, Generation, Sequence
from tokenfleet.gateway.worker_link import WorkerLink, WorkerLinks
from tokenfleet.runtime.errors import FleetError, reason_name
from tokenfleet.runtime.links import DialError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import router_pb2, worker_pb2

# What another worker may well be able to do.
_ELSEWHERE = frozenset(
    {
        pb.REASON_WORKER_LOST,
        pb.REASON_ENGINE_FAILED,
        pb.REASON_OUT_OF_MEMORY,
        pb.REASON_DRAINING,
        pb.REASON_NOT_RESIDENT,
    }
)
# The worker did nothing wrong: the placement was out of date, so it costs no retry.
_FREE = frozenset({pb.REASON_NOT_RESIDENT, pb.REASON_DRAINING})
# Placements refused without progress: a safety net against two services that disagree for ever.
_MOST_REFUSALS = 50
FIRST_PAUSE_S = 0.02

log = get_logger(__name__)


class Generator:
    """Owns the way from a tokenized prompt to a finished answer."""

    def __init__(
        self, router: RouterClient, workers: WorkerLinks, metrics: GatewayMetrics, max_attempts: int
    ) -> None:
        self._router = router
        self._workers = workers
        self._metrics = metrics
        self._max_attempts = max_attempts
        self._loop = asyncio.get_running_loop()

    async def run(self, sequence: Sequence) -> None:
        """Returns when the answer is complete. Raises FleetError when it cannot be completed: as
        ModelUnavailable while it has not begun, and its model is why.

        Cancelling the calling task frees what the sequence holds on its worker.
        """
        refusals = 0
        while True:
            sequence.attempt += 1
            terminal = await self._attempt(sequence)
            if terminal.finish_reason != pb.FINISH_REASON_FAILED:
                sequence.finish_reason = terminal.finish_reason
                return
            reason = terminal.failure.reason
            refusals = refusals + 1 if reason in _FREE and not sequence.first_token_at else 0
            if reason not in _ELSEWHERE or refusals > _MOST_REFUSALS:
                raise FleetError.from_failure(terminal.failure)
            self._count_failure(sequence, terminal)
            if sequence.failures or refusals:
                pause = FIRST_PAUSE_S * 2 ** min(sequence.failures + refusals - 1, 6)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _attempt(self, sequence: Sequence) -> worker_pb2.Terminal:
        """One placement and what came of it; an unreachable worker counts as a lost one."""
        ask = _ask(sequence, self._loop.time())
        try:
            placement = await self._router.place(ask, lambda waiting: _report(sequence, waiting))
        except FleetError as error:
            if error.reason in UNAVAILABLE and not sequence.ids:
                raise ModelUnavailable.of(error) from error
            raise
        sequence.loading = None
        sequence.attempts.append(Attempt(placement.worker_id, len(sequence.ids)))
        sequence.first_token_at = sequence.last_token_at = 0.0
        release: router_pb2.Release | None = None
        try:
            await sequence.sink.open()
            link = await self._workers.get(placement)
            terminal = await _served(sequence, link, placement)
            release = sequence.release(ask.ask_id, terminal)
            self._metrics.cached_tokens += terminal.cached_tokens
            if sequence.attempt == 1:
                sequence.cached_tokens = terminal.cached_tokens
            return terminal
        except DialError as error:
            release = _released(ask, router_pb2.Release.OUTCOME_UNREACHABLE)
            failure = pb.Failure(reason=pb.REASON_WORKER_LOST, message=f"worker not reachable: {error}")
            return worker_pb2.Terminal(finish_reason=pb.FINISH_REASON_FAILED, failure=failure)
        finally:
            self._router.release(release or _released(ask, router_pb2.Release.OUTCOME_CANCELLED))

    def _count_failure(self, sequence: Sequence, terminal: worker_pb2.Terminal) -> None:
        cause = reason_name(terminal.failure.reason)
        if sequence.first_token_at:
            sequence.failures = 0
            sequence.excluded.clear()
        elif terminal.failure.reason not in _FREE:
            sequence.failures += 1
        sequence.excluded.append(sequence.attempts[-1].worker_id)
        self._metrics.migrations.labels(cause).inc()
        log.info(
            "attempt failed",
            request=sequence.generation.context.request_id,
            attempt=sequence.attempt,
            worker=sequence.attempts[-1].worker_id,
            cause=cause,
            tokens=len(sequence.ids),
            detail=terminal.failure.message,
        )
        if sequence.failures >= self._max_attempts:
            raise FleetError(
                terminal.failure.reason,
                f"{sequence.failures} workers failed in a row; the last said: {terminal.failure.message}",
                retry_after_s=1.0,
            )


async def _served(
    sequence: Sequence, link: WorkerLink, placement: router_pb2.Placement
) -> worker_pb2.Terminal:
    """Submits and waits for the terminal record; a cancelled wait cancels on the worker."""
    sequence.preferred = placement.fingerprint
    ended = link.submit(sequence, placement)
    try:
        return await ended
    except asyncio.CancelledError:
        link.cancel(sequence)
        raise


def _released(ask: router_pb2.Ask, outcome: router_pb2.Release.Outcome.ValueType) -> router_pb2.Release:
    """Of an attempt that taught nothing."""
    return router_pb2.Release(ask_id=ask.ask_id, outcome=outcome)


def _ask(sequence: Sequence, now: float) -> router_pb2.Ask:
    generation: Generation = sequence.generation
    ask = router_pb2.Ask(
        model=generation.model,
        attempt=sequence.attempt,
        prompt_tokens=generation.prompt_tokens + len(sequence.ids),
        original_prompt_tokens=generation.prompt_tokens,
        max_tokens=sequence.left,
    )
    ask.context.CopyFrom(generation.context_at(now))
    generation.prompt.add_to_ask(ask)
    if sequence.excluded:
        ask.excluded_workers.extend(sequence.excluded[-8:])
    if generation.features:
        ask.required_features.extend(generation.features)
    urgency = generation.urgency
    if urgency.ttft_objective_s:
        ask.ttft_objective_s = urgency.ttft_objective_s
    if urgency.itl_objective_s:
        ask.itl_objective_s = urgency.itl_objective_s
    if sequence.preferred is not None:
        ask.preferred.CopyFrom(sequence.preferred)
    return ask


def _report(sequence: Sequence, waiting: router_pb2.Waiting) -> FleetError | None:
    """Tells the client of a load; answers why it is not worth waiting for, where there is an alternative."""
    if not waiting.HasField("load"):
        return None
    sequence.loading = waiting.load
    generation = sequence.generation
    if generation.replaceable and not sequence.ids:
        left_s = generation.deadline - asyncio.get_running_loop().time()
        if (in_vain := too_slow(waiting.load, left_s)) is not None:
            return in_vain
    sequence.sink.loading(waiting.load)
    return None
