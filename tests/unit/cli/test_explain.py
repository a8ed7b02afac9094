"""What `tokenfleet explain` makes of the records of routers."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from rich.console import Console

from tokenfleet.cli import explain, explain_tables
from tokenfleet.cli.errors import CliError
from tokenfleet.v1 import common_pb2, router_pb2

Candidate = router_pb2.DecisionRecord.Candidate
Release = router_pb2.Release

CHOSEN = Candidate(
    worker_id="worker-0-aa",
    zone="zone-a",
    running=3,
    waiting=1,
    predicted_ttft_s=0.125,
    predicted_step_s=0.0625,
    cost_s=1.5,
    matched_tokens=1024,
    parts_s={"answer": 1.25, "queue": 0.25, "late": 0.001},
)
RULED_OUT = Candidate(worker_id="worker-1-bb", zone="zone-b", cost_s=math.inf, veto="full")
VETOED = Candidate(worker_id="worker-2-cc", zone="zone-c", veto="draining")

LOST = router_pb2.DecisionRecord(
    request_id="r",
    attempt=1,
    model="small",
    policy="predicted",
    chosen_worker="worker-0-aa",
    why="least predicted cost",
    candidates=[CHOSEN, RULED_OUT, VETOED],
    waited_s=0.25,
    actual=Release(outcome=Release.OUTCOME_WORKER_LOST, ttft_s=0.25, itl_s=0.03125, completion_tokens=17),
)
FINISHED = router_pb2.DecisionRecord(
    request_id="r",
    attempt=2,
    model="small",
    policy="predicted",
    chosen_worker="worker-0-aa",
    why="least predicted cost",
    candidates=[CHOSEN],
    decided_in_us=85,
    actual=Release(
        outcome=Release.OUTCOME_FINISHED, ttft_s=0.5, itl_s=0.125, cached_tokens=1000, completion_tokens=1
    ),
)
REFUSED = router_pb2.DecisionRecord(
    request_id="r",
    attempt=3,
    model="small",
    policy="predicted",
    why="no worker is ready",
    candidates=[VETOED],
    failure=common_pb2.Failure(reason=common_pb2.REASON_NO_WORKER, message="no worker is ready"),
)
UNPREDICTED = router_pb2.DecisionRecord(
    request_id="r",
    attempt=1,
    model="small",
    policy="round_robin",
    chosen_worker="w",
    why="its turn",
    candidates=[Candidate(worker_id="w", running=1)],
)


@asynccontextmanager
async def router(*records: router_pb2.DecisionRecord) -> AsyncIterator[str]:
    """One that knows request r of tenant acme."""

    async def answer(request: bytes, context: object) -> bytes:
        del context
        asked = router_pb2.ExplainRequest.FromString(request)
        known = (asked.request_id, asked.tenant) == ("r", "acme")
        return router_pb2.ExplainResponse(records=records if known else ()).SerializeToString()

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("tokenfleet.v1.Router", {"Explain": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def show(target: str, request_id: str = "r", tenant: str = "acme", *, as_json: bool = True) -> None:
    explain.show_explanation(request_id, tenant=tenant, port=None, router=target, as_json=as_json)


def printed(*records: router_pb2.DecisionRecord) -> list[list[str]]:
    """The explanation's lines, in words."""
    console = Console(width=160, highlight=False, color_system=None)
    with console.capture() as capture:
        explain_tables.print_explanation("r", [explain.attempt_row(each) for each in records], console)
    return [line.split() for line in capture.get().splitlines()]


def test_how_far_off_is_what_happened_minus_what_was_predicted() -> None:
    deviation = explain.attempt_row(FINISHED).deviation
    assert deviation == explain.Deviation(ttft_s=0.375, itl_s=0.0625, cached_tokens=-24)


def test_a_lost_worker_told_nothing_of_its_cache() -> None:
    row = explain.attempt_row(LOST)
    assert row.happened is not None
    assert row.happened.cached_tokens is None
    assert row.deviation == explain.Deviation(ttft_s=0.125, itl_s=-0.03125, cached_tokens=None)


def test_a_policy_that_predicts_nothing_is_never_wrong() -> None:
    record = router_pb2.DecisionRecord()
    record.CopyFrom(UNPREDICTED)
    record.actual.CopyFrom(FINISHED.actual)
    row = explain.attempt_row(record)
    assert (row.candidates[0].cost_s, row.predicted, row.deviation) == (None, None, None)
    assert row.happened is not None


def test_the_table_of_candidates() -> None:
    lines = printed(LOST)
    assert (
        "→ worker-0-aa zone-a 3 1 1,024 125.0 ms 62.5 ms 1.50 s answer 1.25 s, queue 250.0 ms".split()
        in lines
    )
    assert "worker-1-bb zone-b 0 0 0 0.0 ms 0.0 ms – full".split() in lines
    assert "worker-2-cc zone-c 0 0 – – – – draining".split() in lines


def test_prediction_and_truth_side_by_side() -> None:
    lines = printed(FINISHED)
    assert "TTFT 125.0 ms 500.0 ms +375.0 ms (+300%)".split() in lines
    assert "ITL 62.5 ms 125.0 ms +62.5 ms (+100%)".split() in lines
    assert "cached tokens 1,024 1,000 -24".split() in lines
    assert "finished after 1 token".split() in lines


def test_each_attempt_has_its_headline_and_its_end() -> None:
    lines = printed(LOST, FINISHED, REFUSED)
    assert "attempt 1 → worker-0-aa: least predicted cost".split() in lines
    assert "policy predicted, waited 250.0 ms in the queue".split() in lines
    assert "worker lost after 17 tokens".split() in lines
    assert "policy predicted, did not wait, decided in 85 µs".split() in lines
    assert "attempt 3 → no_worker: no worker is ready".split() in lines


def test_what_has_not_ended_is_not_compared() -> None:
    lines = printed(UNPREDICTED)
    assert any(line[:4] == ["it", "has", "not", "ended,"] for line in lines)
    assert not any(line[:1] == ["TTFT"] for line in lines)


async def test_attempts_of_several_routers_come_in_order_and_as_valid_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with router(FINISHED) as one, router(LOST) as other:
        await asyncio.to_thread(show, f"{one}, {other}, 127.0.0.1:1")
    shown = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert shown["request_id"] == "r"
    assert [row["attempt"] for row in shown["attempts"]] == [1, 2]
    assert [row["cost_s"] for row in shown["attempts"][0]["candidates"]] == [1.5, None, None]
    assert shown["attempts"][1]["happened"]["outcome"] == "finished"


@pytest.mark.parametrize(("request_id", "tenant"), [("other", "acme"), ("r", "default")])
async def test_an_unknown_request_says_what_to_check(request_id: str, tenant: str) -> None:
    async with router(FINISHED) as target:
        with pytest.raises(CliError) as caught:
            await asyncio.to_thread(show, target, request_id, tenant)
    message = str(caught.value)
    assert f"request {request_id} of tenant {tenant}" in message
    for remedy in ("--tenant", "TOKENFLEET_ROUTER_EXPLAIN_RECORDS", "TOKENFLEET_ROUTER_DECISION_LOG_RATIO"):
        assert remedy in message


def test_a_router_that_does_not_answer_is_named() -> None:
    with pytest.raises(CliError, match=r"the router at 127\.0\.0\.1:1 does not answer: UNAVAILABLE"):
        show("127.0.0.1:1")
