"""A request for a model that nobody holds waits and is told, or another model answers and that is told."""

from typing import Any

import grpc
import pytest

from tests.contract.any_client import KINDS, client_of
from tests.contract.fake_fleet import FakeFleet, answer, gateway_on_fakes, letters
from tests.contract.test_gateway_grpc import chatting, failure_of, stub_on_fakes
from tests.contract.test_gateway_http import CHAT, chat, events
from tests.contract.test_gateway_websocket import hear, hear_out, open_socket, send, text_of
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import router_pb2

CATALOG = [
    letters("letters", fallback="second"),
    letters("second", fallback="third", context_length=30),
    letters("third"),
]
BROKEN = pb.Failure(reason=pb.REASON_LOAD_FAILED, message="weights are truncated", retry_after_ms=7000)
NO_ROOM = pb.Failure(
    reason=pb.REASON_OUT_OF_MEMORY, message="add a worker", retry_after_ms=5000, missing_bytes=3 << 30
)
NEVER = {"X-Tokenfleet-Fallback": "never"}
FALLBACK = "x-tokenfleet-fallback"


def loading(eta_ms: int = 0, done: int = 40) -> pb.LoadProgress:
    return pb.LoadProgress(
        model="letters",
        stage=pb.LoadProgress.STAGE_FETCHING,
        bytes_done=done,
        bytes_total=100,
        eta_ms=eta_ms,
    )


async def test_the_fallback_answers_and_the_response_says_so() -> None:
    async with gateway_on_fakes(catalog=CATALOG) as fleet:
        fleet.router.failures["letters"] = BROKEN
        response = await fleet.http.post(CHAT, json=chat("hey"))
        assert response.headers[FALLBACK] == "load_failed"
        body = response.json()
        assert body["model"] == "second"
        assert body["tokenfleet"] == {"fallback": {"requested": "letters", "reason": "load_failed"}}
        assert [job.model for job in fleet.tokenizer.jobs] == ["letters", "second"], "each has its own tokens"
        metrics = (await fleet.http.get("/metrics")).text
        assert 'tokenfleet_gateway_fallbacks_total{reason="load_failed"} 1.0' in metrics
        own = await fleet.http.post(CHAT, json=chat("hey", model="third"))
        assert FALLBACK not in own.headers
        assert "tokenfleet" not in own.json()


async def test_one_that_cannot_hold_the_prompt_is_passed_over() -> None:
    async with gateway_on_fakes(catalog=CATALOG) as fleet:
        fleet.router.failures["letters"] = NO_ROOM
        response = await fleet.http.post(CHAT, json=chat("much longer than others"))
        assert (response.json()["model"], response.headers[FALLBACK]) == ("third", "out_of_memory")


async def test_where_all_fail_the_first_is_why() -> None:
    async with gateway_on_fakes(catalog=CATALOG) as fleet:
        fleet.router.failures |= {"letters": BROKEN, "second": NO_ROOM, "third": NO_ROOM}
        response = await fleet.http.post(CHAT, json=chat("hey"))
        assert response.status_code == 503
        assert response.headers["retry-after"] == "7"
        assert response.json()["error"]["code"] == "load_failed"
        assert "missing_bytes" not in response.json()["error"]
        assert "truncated" in response.json()["error"]["message"]


async def test_a_client_can_forbid_it() -> None:
    async with gateway_on_fakes(catalog=CATALOG) as fleet:
        fleet.router.failures["letters"] = NO_ROOM
        refused = await fleet.http.post(CHAT, json=chat("hey"), headers=NEVER)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        error = refused.json()["error"]
        assert (error["code"], error["missing_bytes"]) == ("out_of_memory", 3 << 30)
        odd = await fleet.http.post(CHAT, json=chat("hey"), headers={FALLBACK: "maybe"})
        assert (odd.status_code, odd.json()["error"]["param"]) == (400, "X-Tokenfleet-Fallback")


@pytest.mark.parametrize("reason", [pb.REASON_QUEUE_FULL, pb.REASON_QUOTA_EXCEEDED, pb.REASON_UNSUPPORTED])
async def test_what_is_no_fault_of_the_model_moves_nobody(reason: Any) -> None:
    async with gateway_on_fakes(catalog=CATALOG) as fleet:
        fleet.router.failures["letters"] = pb.Failure(reason=reason, message="no")
        response = await fleet.http.post(CHAT, json=chat("hey"))
        assert response.status_code in (400, 429)
        assert len(fleet.router.asks) == 1


async def test_an_answer_that_has_begun_stays_with_its_model() -> None:
    async with gateway_on_fakes(catalog=CATALOG) as fleet:
        worker = fleet.workers[0]

        def fail(_: Any, running: Any) -> pb.Failure | None:
            if running.tokens < 3:
                return None
            fleet.router.failures["letters"] = BROKEN
            return pb.Failure(reason=pb.REASON_ENGINE_FAILED, message="made to fail")

        worker.fail = fail
        response = await fleet.http.post(CHAT, json=chat("hey"))
        assert response.status_code == 503
        assert {ask.model for ask in fleet.router.asks} == {"letters"}


async def test_a_stream_says_who_answers_in_every_chunk() -> None:
    async with gateway_on_fakes(catalog=CATALOG) as fleet:
        fleet.router.failures["letters"] = BROKEN
        async with fleet.http.stream("POST", CHAT, json=chat("hey", stream=True)) as response:
            assert response.headers[FALLBACK] == "load_failed"
        seen = await events(fleet, CHAT, chat("hey"))
        assert {event["model"] for event in seen if isinstance(event, dict)} == {"second"}


def decide(fleet: FakeFleet, **kind: Any) -> None:
    """About the ask that came first and waits."""
    decision = router_pb2.Decision(ask_id=fleet.router.asks[0].ask_id, **kind)
    fleet.router.open_links[0].send(router_pb2.ScheduleResponse(decisions=[decision]))


async def test_a_stream_shows_how_far_the_load_is_and_only_then_who_answers() -> None:
    async with gateway_on_fakes(catalog=CATALOG, decision_wait_s=0.1) as fleet:
        fleet.router.loads["letters"] = loading()
        async with fleet.http.stream("POST", CHAT, json=chat("hey", stream=True)) as response:
            assert FALLBACK not in response.headers, "they left before it was known"
            parts = response.aiter_text()
            seen = await anext(parts)
            assert seen == ": letters: fetching 40 % (40 of 100 bytes)\n\n", "what came before the headers"
            decide(fleet, waiting=router_pb2.Waiting(load=loading(12_000, done=80)))
            seen = await anext(parts)
            assert seen == ": letters: fetching 80 % (80 of 100 bytes, 12 s left)\n\n"
            decide(fleet, failure=BROKEN)
            rest = "".join([part async for part in parts])
        assert rest.startswith(": fallback: letters cannot be had (load_failed): second answers\n\n")
        assert '"model":"second"' in rest
        assert '"model":"letters"' not in rest
        assert rest.endswith("data: [DONE]\n\n")


async def test_a_failure_behind_the_headers_is_a_typed_event_without_done() -> None:
    async with gateway_on_fakes(decision_wait_s=0.1) as fleet:
        fleet.router.loads["letters"] = loading()
        async with fleet.http.stream("POST", CHAT, json=chat("hey", stream=True)) as response:
            parts = response.aiter_text()
            await anext(parts)
            decide(fleet, failure=BROKEN)
            rest = "".join([part async for part in parts])
        assert '"code":"load_failed"' in rest
        assert "[DONE]" not in rest


async def test_a_load_that_takes_too_long_is_not_waited_for_where_another_can_answer() -> None:
    async with gateway_on_fakes(catalog=CATALOG) as fleet:
        fleet.router.loads["letters"] = loading(eta_ms=60_000)
        response = await fleet.http.post(CHAT, json=chat("hey"), headers={"X-Request-Timeout": "5"})
        assert (response.json()["model"], response.headers[FALLBACK]) == ("second", "deadline_exceeded")
        await fleet.idle()
        assert len(fleet.router.cancels) == 1, "nobody waits for it any more"


async def test_where_nobody_else_can_answer_the_deadline_bounds_the_wait() -> None:
    async with gateway_on_fakes() as fleet:
        fleet.router.loads["letters"] = loading(eta_ms=60_000)
        late = await fleet.http.post(CHAT, json=chat("hey"), headers={"X-Request-Timeout": "0.3"})
        assert (late.status_code, late.headers["retry-after"]) == (504, "60")
        message = late.json()["error"]["message"]
        assert "letters was still being loaded (fetching)" in message
        fleet.router.loads["letters"] = loading()
        unknown = await fleet.http.post(CHAT, json=chat("hey"), headers={"X-Request-Timeout": "0.3"})
        assert (unknown.status_code, unknown.headers["retry-after"]) == (504, "5")


async def test_a_socket_is_told_of_load_and_fallback() -> None:
    async with gateway_on_fakes(catalog=CATALOG) as fleet, open_socket(fleet) as client:
        fleet.router.loads["letters"] = loading(2000)
        await send(client, chat("hey", request_id="a"))
        told = await hear(client)
        assert (told["type"], told["bytes_done"], told["eta_s"]) == ("loading", 40, 2.0)
        decide(fleet, failure=BROKEN)
        assert await hear(client) == {
            "type": "fallback",
            "request_id": "a",
            "model": "second",
            "requested": "letters",
            "reason": "load_failed",
        }
        seen = await hear_out(client)
        assert text_of(seen, "a") == answer("hey", 20)
        assert seen[-1]["tokenfleet"] == {"fallback": {"requested": "letters", "reason": "load_failed"}}
        del fleet.router.loads["letters"]
        fleet.router.failures["letters"] = BROKEN
        await send(client, chat("hey", request_id="b") | {"fallback": "never"})
        refused = await hear(client)
        assert (refused["type"], refused["error"]["code"], refused["retry_after_s"]) == (
            "error",
            "load_failed",
            7,
        )
        await send(client, chat("hey", request_id="c") | {"fallback": "maybe"})
        assert (await hear(client))["error"]["param"] == "fallback"
        fleet.router.failures.clear()
        fleet.router.loads["letters"] = loading(60_000)
        await send(client, chat("hey", request_id="d") | {"fallback": "never", "timeout": 0.2})
        seen = [await hear(client), await hear(client)]
        assert (seen[1]["error"]["code"], seen[1]["retry_after_s"]) == ("deadline_exceeded", 60)


async def test_a_grpc_client_is_told_of_load_and_fallback() -> None:
    async with stub_on_fakes(catalog=CATALOG, decision_wait_s=0) as (fleet, stub):
        fleet.router.loads["letters"] = loading(2000)
        arriving = aiter(stub.Chat(chatting("hey")))
        first = (await anext(arriving)).delta
        assert (first.model, first.loading.bytes_done, first.loading.eta_ms) == ("letters", 40, 2000)
        decide(fleet, failure=BROKEN)
        second = (await anext(arriving)).delta
        assert second.model == "second"
        assert (second.fallback.requested, second.fallback.reason) == ("letters", "load_failed")
        del fleet.router.loads["letters"]
        fleet.router.failures["letters"] = BROKEN
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub.Chat(chatting("hey", no_fallback=True)):
                pass
        assert failure_of(refused.value)[0] == "LOAD_FAILED"


@pytest.mark.parametrize("kind", KINDS)
async def test_the_sdk_says_who_answered(kind: str) -> None:
    async with gateway_on_fakes(catalog=CATALOG) as fleet, client_of(kind, fleet.grpc) as client:
        fleet.router.failures["letters"] = NO_ROOM
        result = await client.result("chat", "letters", "hey", max_tokens=5)
        assert result.model == "second"
        assert result.fallback is not None
        assert (result.fallback.requested, result.fallback.reason) == ("letters", "out_of_memory")
        assert result.text == answer("hey", 5)
        error = await client.failure("chat", "letters", "hey", max_tokens=5, no_fallback=True)
        assert (error.reason, error.missing_bytes) == ("out_of_memory", 3 << 30)
