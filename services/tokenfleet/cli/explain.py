"""`tokenfleet explain`: why a request went where it went, and how right the router was about it.

A router keeps its latest decisions with all that stood before it; how a request really went comes from the
gateway when the request ends. Whoever asks a fleet with several routers need not know which one decided.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import grpc

from tokenfleet.cli.discovery import local_fleet
from tokenfleet.cli.errors import CliError
from tokenfleet.v1 import common_pb2, router_pb2, router_pb2_grpc

TIMEOUT_S = 3.0
ROUTER = "router"
# Outcomes after which nobody can say what the worker had cached.
LOST = ("worker_lost", "unreachable")
Figure = TypeVar("Figure", int, float)


@dataclass(kw_only=True)
class CandidateRow:
    """A worker as it stood when the decision was taken. What is None was not predicted."""

    worker: str
    zone: str
    running: int
    waiting: int  # what was sent there and not yet seen included
    ttft_s: float | None
    step_s: float | None
    cost_s: float | None
    cached_tokens: int | None
    veto: str  # why it was out of the question; empty: it was not
    parts_s: dict[str, float] = field(default_factory=dict)  # of which the cost is the sum


@dataclass(kw_only=True)
class Happened:
    """What the gateway measured. A token that never came took no time, and a lost worker told nothing."""

    outcome: str
    ttft_s: float | None
    itl_s: float | None  # mean
    cached_tokens: int | None
    completion_tokens: int  # of this attempt


@dataclass(kw_only=True)
class Deviation:
    """What happened minus what was predicted, where there are both."""

    ttft_s: float | None
    itl_s: float | None
    cached_tokens: int | None


@dataclass(kw_only=True)
class AttemptRow:
    """One decision, what came of it, and how far off the prediction was."""

    attempt: int
    model: str
    policy: str
    worker: str  # empty: none was found
    why: str
    refusal: str  # the reason, where no worker was found
    waited_s: float
    decided_in_us: float  # 0: it came out of the queue
    candidates: list[CandidateRow] = field(default_factory=list)
    happened: Happened | None = None  # None: it has not ended, or its gateway is gone
    deviation: Deviation | None = None

    @property
    def predicted(self) -> CandidateRow | None:
        """The chosen worker's row, if anything was predicted there."""
        return next(
            (row for row in self.candidates if row.worker == self.worker and row.cost_s is not None), None
        )


def show_explanation(request_id: str, *, tenant: str, port: int | None, router: str, as_json: bool) -> None:
    """Prints all attempts of one request. Raises CliError when no router knows it."""
    routers = [each.strip() for each in router.split(",") if each.strip()] or _local_routers(port)
    attempts = asyncio.run(_ask_all(routers, request_id, tenant))
    if not attempts:
        raise CliError(_unknown(request_id, tenant, routers))
    if as_json:
        print(json.dumps({"request_id": request_id, "attempts": [asdict(row) for row in attempts]}, indent=2))
        return
    from tokenfleet.cli.explain_tables import print_explanation

    print_explanation(request_id, attempts)


def attempt_row(record: router_pb2.DecisionRecord) -> AttemptRow:
    """A router's record in the words of this command."""
    row = AttemptRow(
        attempt=record.attempt,
        model=record.model,
        policy=record.policy,
        worker=record.chosen_worker,
        why=record.why,
        refusal=_reason(record.failure) if record.HasField("failure") else "",
        waited_s=record.waited_s,
        decided_in_us=record.decided_in_us,
        candidates=[_candidate_row(candidate) for candidate in record.candidates],
    )
    if record.HasField("actual"):
        row.happened = _happened(record.actual)
        row.deviation = _deviation(row.predicted, row.happened)
    return row


def _local_routers(port: int | None) -> list[str]:
    record = local_fleet(port, elsewhere="explain --router host:port REQUEST_ID")
    return [each["address"] for each in record["processes"] if each["role"] == ROUTER]


async def _ask_all(routers: Sequence[str], request_id: str, tenant: str) -> list[AttemptRow]:
    """A router that does not answer matters only where no other one knows the request."""
    answers = await asyncio.gather(
        *(_ask(router, request_id, tenant) for router in routers), return_exceptions=True
    )
    rows, silent = [], []
    for router, answer in zip(routers, answers, strict=True):
        if isinstance(answer, grpc.aio.AioRpcError):
            silent.append(f"the router at {router} does not answer: {answer.code().name} {answer.details()}")
        elif isinstance(answer, BaseException):
            raise answer
        else:
            rows += answer
    if silent and not rows:
        raise CliError("; ".join(silent))
    return sorted(rows, key=lambda row: row.attempt)


async def _ask(router: str, request_id: str, tenant: str) -> list[AttemptRow]:
    async with grpc.aio.insecure_channel(router) as channel:
        answer = await router_pb2_grpc.RouterStub(channel).Explain(
            router_pb2.ExplainRequest(request_id=request_id, tenant=tenant), timeout=TIMEOUT_S
        )
    return [attempt_row(record) for record in answer.records]


def _unknown(request_id: str, tenant: str, routers: Iterable[str]) -> str:
    return f"""no decision about request {request_id} of tenant {tenant} is kept by {", ".join(routers)}.
Check
  - the id: it is the answer's "id", or the X-Request-Id that the client sent
  - the tenant: a decision is told to its own tenant only; name another one with --tenant
  - that the request came as far as a router: one of an unknown model or over its quota does not
  - that it is recent: a router keeps its latest decisions, as many as its setting explain_records says
    (TOKENFLEET_ROUTER_EXPLAIN_RECORDS, 4096 by default, 0 for none), and none when it restarts
Of older ones a sample is in the router's log, as large as its setting decision_log_ratio says
(TOKENFLEET_ROUTER_DECISION_LOG_RATIO)."""


def _candidate_row(told: router_pb2.DecisionRecord.Candidate) -> CandidateRow:
    predicted = told.cost_s > 0  # policies that predict nothing leave all of it out
    return CandidateRow(
        worker=told.worker_id,
        zone=told.zone,
        running=told.running,
        waiting=told.waiting,
        ttft_s=_finite(told.predicted_ttft_s) if predicted else None,
        step_s=_finite(told.predicted_step_s) if predicted else None,
        cost_s=_finite(told.cost_s) if predicted else None,
        cached_tokens=told.matched_tokens if predicted else None,
        veto=told.veto,
        parts_s=dict(sorted(told.parts_s.items(), key=lambda part: -part[1])),
    )


def _finite(seconds: float) -> float | None:
    """Where a request cannot go it costs infinitely much, which JSON has no word for."""
    return seconds if math.isfinite(seconds) else None


def _happened(told: router_pb2.Release) -> Happened:
    outcome = router_pb2.Release.Outcome.Name(told.outcome).removeprefix("OUTCOME_").lower()
    return Happened(
        outcome=outcome,
        ttft_s=told.ttft_s or None,
        itl_s=told.itl_s or None,
        cached_tokens=None if outcome in LOST else told.cached_tokens,
        completion_tokens=told.completion_tokens,
    )


def _deviation(predicted: CandidateRow | None, happened: Happened) -> Deviation | None:
    if predicted is None or happened.ttft_s is None:
        return None  # without a first token nothing can be compared
    return Deviation(
        ttft_s=_difference(happened.ttft_s, predicted.ttft_s),
        itl_s=_difference(happened.itl_s, predicted.step_s),
        cached_tokens=_difference(happened.cached_tokens, predicted.cached_tokens),
    )


def _difference(happened: Figure | None, predicted: Figure | None) -> Figure | None:
    return None if happened is None or predicted is None else happened - predicted


def _reason(failure: common_pb2.Failure) -> str:
    return common_pb2.Reason.Name(failure.reason).removeprefix("REASON_").lower()
