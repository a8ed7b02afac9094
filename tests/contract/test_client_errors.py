"""What the SDK makes of trouble: typed errors, deadlines, retries, gateways that come and go."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from tests.contract.any_client import KINDS, AnyClient, client_of, until
from tests.contract.fake_fleet import CONTEXT, FakeFleet, answer, failing_after, gateway_on_fakes
from tokenfleet.client import (
    ContextTooLong,
    DeadlineExceeded,
    Delta,
    FleetError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ServerError,
    StreamBroken,
    Unavailable,
    Unsupported,
)
from tokenfleet.runtime.grpc_host import GrpcHost
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import router_pb2

either = pytest.mark.parametrize("kind", KINDS)


def shed(reason: Any, retry_after_s: float = 0) -> pb.Failure:
    return pb.Failure(reason=reason, message="made to fail", retry_after_ms=round(retry_after_s * 1000))


def failing_first(fleet: FakeFleet, times: int, failure: pb.Failure) -> list[float]:
    """The router's first so many decisions are `failure`; answers the times at which it was asked."""
    decide, asked = fleet.router.decide, list[float]()

    def instead(ask: router_pb2.Ask) -> router_pb2.Decision:
        asked.append(time.monotonic())
        if len(asked) <= times:
            return router_pb2.Decision(ask_id=ask.ask_id, failure=failure)
        return decide(ask)

    fleet.router.decide = instead  # type: ignore[method-assign]
    return asked


@either
@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"temperature": 9}, InvalidRequest, "temperature"),
        ({"n": 99}, InvalidRequest, "n"),
        ({"stop": ["x"] * 17}, InvalidRequest, "stop"),
        ({"request_id": "a\nb"}, InvalidRequest, "request_id"),
        ({"max_tokens": CONTEXT}, ContextTooLong, "max_tokens"),
    ],
)
async def test_a_wrong_request_names_its_field(
    kind: str, options: dict[str, Any], error: type[FleetError], field: str
) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc) as client:
        failure = await client.failure("chat", "letters", "hello", **options)
        assert type(failure) is error
        assert failure.field == field
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert not fleet.router.asks


@either
async def test_an_unknown_model_is_named_with_those_that_exist(kind: str) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc) as client:
        failure = await client.failure("chat", "nope", "hello")
        assert type(failure) is ModelNotFound
        assert "letters" in failure.message
        assert failure.request_id
        with pytest.raises(ModelNotFound):
            await client.call("count_tokens", "nope", "hello")


@either
async def test_what_the_engine_lacks_is_unsupported(kind: str) -> None:
    async with gateway_on_fakes(workers=2) as fleet, client_of(kind, fleet.grpc) as client:
        fleet.workers[0].fail = failing_after(1, pb.REASON_UNSUPPORTED)
        failure = await client.failure("chat", "letters", "hello")
        assert type(failure) is Unsupported


@either
async def test_shedding_is_waited_for_as_long_as_the_server_says(kind: str) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc) as client:
        asked = failing_first(fleet, 2, shed(pb.REASON_QUEUE_FULL, 0.7))
        assert (await client.result("chat", "letters", "hello", max_tokens=5)).text == answer("hello", 5)
        assert len(asked) == 3
        assert min(later - earlier for earlier, later in itertools.pairwise(asked)) >= 0.7


@either
async def test_without_advice_it_backs_off_by_itself(kind: str) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc) as client:
        asked = failing_first(fleet, 3, shed(pb.REASON_NO_WORKER))
        assert (await client.result("chat", "letters", "hello", max_tokens=5)).text == answer("hello", 5)
        assert len(asked) == 4


@either
async def test_retries_end_with_the_servers_own_error(kind: str) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc, attempts=2) as client:
        asked = failing_first(fleet, 99, shed(pb.REASON_NO_WORKER, 0.1))
        failure = await client.failure("chat", "letters", "hello", request_id="mine")
        assert type(failure) is Unavailable
        assert (failure.reason, failure.retry_after_s, failure.request_id) == ("no_worker", 0.1, "mine")
        assert len(asked) == 2


@either
@pytest.mark.parametrize(
    ("reason", "retry_after_s", "error"),
    [
        (pb.REASON_QUEUE_FULL, 60.0, Overloaded),
        (pb.REASON_QUOTA_EXCEEDED, 1.0, Overloaded),
        (pb.REASON_LOAD_FAILED, 0.0, Unavailable),
    ],
)
async def test_what_would_take_long_is_left_to_the_caller(
    kind: str, reason: Any, retry_after_s: float, error: type[FleetError]
) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc) as client:
        asked = failing_first(fleet, 99, shed(reason, retry_after_s))
        failure = await client.failure("chat", "letters", "hello")
        assert type(failure) is error
        assert failure.retry_after_s == retry_after_s
        assert len(asked) == 1


@either
async def test_an_answer_that_breaks_off_is_no_answer_and_not_asked_again(kind: str) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc) as client:
        fleet.workers[0].fail = failing_after(4, pb.REASON_ENGINE_FAILED)
        seen: list[Delta] = []
        with pytest.raises(StreamBroken) as failed:
            await client.read(seen, "chat", "letters", "hello")
        assert "".join(delta.text for delta in seen) == answer("hello", 4)
        assert failed.value.reason == "no_worker"
        assert failed.value.request_id
        assert len(fleet.workers[0].submits) == 1


@either
async def test_a_deadline_keeps_what_had_arrived(kind: str) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc, timeout=0.5) as client:
        seen: list[Delta] = []
        reading = asyncio.create_task(client.read(seen, "chat", "letters", "hello", max_tokens=2000))
        await until(lambda: seen)
        fleet.workers[0].hold = True
        with pytest.raises(DeadlineExceeded, match=r"0\.5 s"):
            await reading
        await until(lambda: fleet.workers[0].cancels)
        with pytest.raises(DeadlineExceeded, match=r"0\.2 s"):
            await client.read(seen, "chat", "letters", "hello", timeout=0.2)


@either
async def test_the_gateways_deadline_is_the_same_error(kind: str) -> None:
    async with gateway_on_fakes(request_timeout_s=0.3) as fleet, client_of(kind, fleet.grpc) as client:
        fleet.workers[0].hold = True
        failure = await client.failure("chat", "letters", "hello")
        assert type(failure) is DeadlineExceeded
        assert failure.reason == "deadline_exceeded"


@either
async def test_a_request_too_large_is_not_even_sent(kind: str) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc) as client:
        failure = await client.failure("generate", "letters", "x" * (17 * 1024 * 1024))
        assert type(failure) is InvalidRequest
        assert failure.code is None
        long = "x" * (2 * 1024 * 1024)
        assert type(await client.failure("generate", "letters", long)) is ContextTooLong


@either
async def test_large_requests_are_retried_like_small_ones(kind: str) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc) as client:
        asked = failing_first(fleet, 1, shed(pb.REASON_NO_WORKER))
        messages = [{"role": "system", "content": "x" * 400_000}, {"role": "user", "content": "hello"}]
        assert (await client.result("chat", "letters", messages, max_tokens=5)).text == answer("hello", 5)
        assert len(asked) == 2


@either
async def test_nobody_there_is_unavailable_or_waited_for(kind: str) -> None:
    async with client_of(kind, "127.0.0.1:1", attempts=2) as client:
        assert type(await client.failure("chat", "letters", "hello")) is Unavailable
        with pytest.raises(Unavailable):
            await client.call("models")
    async with client_of(kind, "127.0.0.1:1", wait_for_ready=True, timeout=0.3) as client:
        assert type(await client.failure("chat", "letters", "hello")) is DeadlineExceeded


@either
async def test_a_server_without_the_api_is_a_servers_fault(kind: str) -> None:
    host = GrpcHost("tokenfleet.v1.Inference", lambda server: None, listen="127.0.0.1:0")
    port = await host.start()
    await host.set_ready(True)
    async with client_of(kind, f"127.0.0.1:{port}") as client:
        failure = await client.failure("chat", "letters", "hello")
        assert type(failure) is ServerError
        assert failure.code is grpc.StatusCode.UNIMPLEMENTED
    await host.stop(0)


@either
async def test_a_gateway_that_is_not_ready_gets_nothing(kind: str) -> None:
    host = GrpcHost("tokenfleet.v1.Inference", lambda server: None, listen="127.0.0.1:0")
    port = await host.start()
    async with gateway_on_fakes() as fleet:
        targets = [f"127.0.0.1:{port}", fleet.grpc]
        async with client_of(kind, targets) as client:
            for _ in range(10):
                await client.result("chat", "letters", "hello", max_tokens=2)
    await host.stop(0)


async def until_round(client: AnyClient, fleets: Sequence[FakeFleet]) -> None:
    """Until the client is connected to all of them."""
    async with asyncio.timeout(10):
        while not all(fleet.router.asks for fleet in fleets):
            await client.result("chat", "letters", "hello", max_tokens=2)


@either
async def test_requests_go_round_the_gateways(kind: str) -> None:
    async with gateway_on_fakes() as one, gateway_on_fakes() as other:
        async with client_of(kind, [one.grpc, other.grpc]) as client:
            await until_round(client, (one, other))
            before = len(one.router.asks), len(other.router.asks)
            for _ in range(10):
                await client.result("chat", "letters", "hello", max_tokens=2)
        assert len(one.router.asks) - before[0] == len(other.router.asks) - before[1] == 5


@either
async def test_a_draining_gateway_costs_no_request(kind: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(gateway_on_fakes(grace_s=20))
        other = await stack.enter_async_context(gateway_on_fakes())
        client = await stack.enter_async_context(client_of(kind, [one.grpc, other.grpc]))
        await until_round(client, (one, other))
        one.workers[0].hold = other.workers[0].hold = True
        running = [
            asyncio.create_task(client.result("chat", "letters", "hello", max_tokens=20)) for _ in range(6)
        ]
        await until(lambda: one.workers[0].running and other.workers[0].running)
        one.lifecycle.stopping.set()
        for fleet in (one, other):
            fleet.workers[0].hold = False
            fleet.workers[0].step()
        for _ in range(20):
            running.append(asyncio.create_task(client.result("chat", "letters", "hello", max_tokens=20)))
            await asyncio.sleep(0)
        texts = [one.text for one in await asyncio.gather(*running)]
        assert texts == [answer("hello", 20)] * 26


@either
async def test_a_gateway_that_ends_before_its_answers_began_costs_none(kind: str) -> None:
    async with gateway_on_fakes(grace_s=0) as one, gateway_on_fakes() as other:
        async with client_of(kind, [one.grpc, other.grpc]) as client:
            await until_round(client, (one, other))
            one.workers[0].hold = other.workers[0].hold = True
            running = [
                asyncio.create_task(client.result("chat", "letters", "hello", max_tokens=20))
                for _ in range(4)
            ]
            await until(lambda: one.workers[0].running and other.workers[0].running)
            one.lifecycle.stopping.set()
            other.workers[0].hold = False
            other.workers[0].step()
            answers = await asyncio.gather(*running)
        assert [one.text for one in answers] == [answer("hello", 20)] * 4
