"""The gateway over gRPC, as a client without our SDK sees it."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests.contract.fake_fleet import CONTEXT, FakeFleet, answer, breaking_after, gateway_on_fakes
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import inference_pb2 as api
from tokenfleet.v1 import inference_pb2_grpc, router_pb2, tokenizer_pb2


@asynccontextmanager
async def stub_on_fakes(
    options: Any = (), **changed: Any
) -> AsyncIterator[tuple[FakeFleet, "inference_pb2_grpc.InferenceAsyncStub"]]:
    async with (
        gateway_on_fakes(**changed) as fleet,
        grpc.aio.insecure_channel(fleet.grpc, options) as channel,
    ):
        yield fleet, inference_pb2_grpc.InferenceStub(channel)


def generating(text: str = "hello", **fields: Any) -> api.GenerateRequest:
    known: dict[str, Any] = {"model": "letters", "text": text, "max_tokens": 20}
    return api.GenerateRequest(**(known | fields))


def chatting(text: str = "hello", **fields: Any) -> api.ChatRequest:
    messages = [tokenizer_pb2.ChatMessage(role="user", content=text)]
    known: dict[str, Any] = {"model": "letters", "messages": messages, "max_tokens": 20}
    return api.ChatRequest(**(known | fields))


def sampling(**fields: Any) -> api.ChatRequest:
    return chatting(sampling=pb.SamplingParams(**fields))


async def deltas(call: Any) -> list[api.Delta]:
    return [response.delta async for response in call]


def text_of(seen: list[api.Delta], index: int = 0) -> str:
    return "".join(delta.text for delta in seen if delta.index == index)


def failure_of(error: grpc.aio.AioRpcError) -> tuple[str, str, float]:
    """Reason, field and advice in seconds."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            for detail in status_pb2.Status.FromString(value).details:
                assert detail.Unpack(info) or detail.Unpack(retry)
    return info.reason, info.metadata["field"], retry.retry_delay.ToNanoseconds() / 1e9


async def failing(call: Any, before: list[Any] | None = None) -> grpc.aio.AioRpcError:
    """The call's error; what came before it goes to `before`."""
    try:
        async for response in call:
            if before is not None:
                before.append(response)
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call did not fail")


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_answers_interleave_and_end_with_the_usage_of_them_all() -> None:
    async with stub_on_fakes() as (_, stub):
        for call in (stub.Generate(generating(n=3)), stub.Chat(chatting(n=3))):
            seen = await deltas(call)
            assert [text_of(seen, index) for index in range(3)] == [answer("hello", 20)] * 3
            ends = [delta.index for delta in seen if delta.finish_reason == pb.FINISH_REASON_LENGTH]
            assert sorted(ends) == [0, 1, 2]
            assert seen[-1].usage == pb.Usage(prompt_tokens=5, completion_tokens=60)
            assert not any(delta.HasField("usage") for delta in seen[:-1])
            assert seen[0].model == "letters"
            assert seen[0].request_id
            assert not any(delta.request_id for delta in seen[1:])


async def test_token_ids_come_with_the_text_they_made() -> None:
    async with stub_on_fakes() as (_, stub):
        ids = tokenizer_pb2.TokenInput(token_ids=b"hello")
        seen = await deltas(
            stub.Generate(
                api.GenerateRequest(model="letters", tokens=ids, max_tokens=20, return_token_ids=True)
            )
        )
        assert all(len(delta.token_ids) == len(delta.text) for delta in seen)
        letters = "".join(chr(97 + token) for delta in seen for token in delta.token_ids)
        assert letters == text_of(seen) == answer("hello", 20)


async def test_a_request_keeps_its_id_and_priority_on_the_way() -> None:
    async with stub_on_fakes() as (fleet, stub):
        seen = await deltas(stub.Chat(chatting(request_id="mine-7", priority=pb.PRIORITY_BATCH)))
        assert seen[0].request_id == "mine-7"
        assert fleet.router.asks[0].context.request_id == "mine-7"
        assert fleet.router.asks[0].context.priority == pb.PRIORITY_BATCH
        assert not fleet.router.asks[0].HasField("ttft_objective_s")


async def test_objectives_reach_the_router() -> None:
    async with stub_on_fakes() as (fleet, stub):
        await deltas(stub.Chat(chatting(ttft_objective_s=0.5, itl_objective_s=0.25)))
        (ask,) = fleet.router.asks
        assert (ask.ttft_objective_s, ask.itl_objective_s) == (0.5, 0.25)


@pytest.mark.parametrize("tokens", [1, 7, 20])
async def test_a_worker_that_dies_is_not_noticed(tokens: int) -> None:
    async with stub_on_fakes(workers=2) as (fleet, stub):
        fleet.workers[0].fail = breaking_after(tokens)
        seen = await deltas(stub.Chat(chatting()))
        assert text_of(seen) == answer("hello", 20)
        assert seen[-1].usage.completion_tokens == 20


async def test_counting_and_listing() -> None:
    async with stub_on_fakes() as (fleet, stub):
        counted = await stub.CountTokens(api.CountTokensRequest(model="letters", text="hello"))
        assert counted == api.CountTokensResponse(tokens=5, context_length=CONTEXT)
        chat = tokenizer_pb2.ChatInput(messages=chatting("hello!").messages, add_generation_prompt=True)
        assert (await stub.CountTokens(api.CountTokensRequest(model="letters", chat=chat))).tokens == 6
        assert all(job.count_only for job in fleet.tokenizer.jobs)
        assert not fleet.router.asks
        models = (await stub.ListModels(api.ListModelsRequest())).models
        model = api.ListModelsResponse.Model(name="letters", context_length=CONTEXT, resident=True)
        assert list(models) == [model]


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (chatting(model=""), "INVALID_ARGUMENT", "model"),
        (chatting(model="nope"), "MODEL_NOT_FOUND", "model"),
        (chatting(messages=[]), "INVALID_ARGUMENT", "messages"),
        (
            chatting(messages=[tokenizer_pb2.ChatMessage(role="wizard", content="x")]),
            "INVALID_ARGUMENT",
            "messages.0.role",
        ),
        (
            chatting(messages=[tokenizer_pb2.ChatMessage(role="user", content="x", name="x" * 300)]),
            "INVALID_ARGUMENT",
            "messages.0.name",
        ),
        (chatting(n=17), "INVALID_ARGUMENT", "n"),
        (chatting(n=2**32 - 1), "INVALID_ARGUMENT", "n"),
        (chatting(max_tokens=2**32 - 1), "INVALID_ARGUMENT", "max_tokens"),
        (chatting(max_tokens=CONTEXT), "CONTEXT_LENGTH_EXCEEDED", "max_tokens"),
        (chatting(priority=9), "INVALID_ARGUMENT", "priority"),
        (chatting(ttft_objective_s=-1), "INVALID_ARGUMENT", "ttft_objective_s"),
        (chatting(itl_objective_s=float("nan")), "INVALID_ARGUMENT", "itl_objective_s"),
        (chatting(request_id="a\nb"), "INVALID_ARGUMENT", "request_id"),
        (chatting(request_id="x" * 129), "INVALID_ARGUMENT", "request_id"),
        (sampling(temperature=2.5), "INVALID_ARGUMENT", "temperature"),
        (sampling(temperature=float("nan")), "INVALID_ARGUMENT", "temperature"),
        (sampling(top_p=0), "INVALID_ARGUMENT", "top_p"),
        (sampling(min_p=-1), "INVALID_ARGUMENT", "min_p"),
        (sampling(repetition_penalty=0), "INVALID_ARGUMENT", "repetition_penalty"),
        (sampling(presence_penalty=float("inf")), "INVALID_ARGUMENT", "presence_penalty"),
        (sampling(frequency_penalty=-3), "INVALID_ARGUMENT", "frequency_penalty"),
        (sampling(stop=[""]), "INVALID_ARGUMENT", "stop.0"),
        (sampling(stop=["x"] * 17), "INVALID_ARGUMENT", "stop"),
        (sampling(min_tokens=2**32 - 1), "INVALID_ARGUMENT", "min_tokens"),
        (sampling(logprobs=0), "UNSUPPORTED", "logprobs"),
        (sampling(logit_bias={1: 5}), "UNSUPPORTED", "logit_bias"),
    ],
)
async def test_bad_fields_are_named(request_: api.ChatRequest, reason: str, field: str) -> None:
    async with stub_on_fakes() as (fleet, stub):
        error = await failing(stub.Chat(request_))
        expected = "NOT_FOUND" if reason == "MODEL_NOT_FOUND" else "INVALID_ARGUMENT"
        assert error.code().name == expected
        assert failure_of(error)[:2] == (reason, field)
        assert field in (error.details() or "")
        assert not fleet.router.asks


@pytest.mark.parametrize(
    "request_",
    [
        api.GenerateRequest(model="letters"),
        api.GenerateRequest(model="letters", text=""),
        api.GenerateRequest(model="letters", tokens=tokenizer_pb2.TokenInput()),
    ],
)
async def test_an_empty_prompt_is_refused(request_: api.GenerateRequest) -> None:
    async with stub_on_fakes() as (_, stub):
        assert failure_of(await failing(stub.Generate(request_)))[:2] == ("INVALID_ARGUMENT", "prompt")


@pytest.mark.parametrize("method", ["Generate", "Chat", "CountTokens", "ListModels"])
async def test_bytes_that_are_no_message_are_a_bad_request(method: str) -> None:
    async with gateway_on_fakes() as fleet, grpc.aio.insecure_channel(fleet.grpc) as channel:
        call: Any = channel.unary_stream(f"/tokenfleet.v1.Inference/{method}")
        error = await failing(call(b"\xff\xff\xff"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert method in (error.details() or "")


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_message_too_large_is_refused_compressed_or_not(compression: grpc.Compression) -> None:
    async with stub_on_fakes() as (_, stub):
        request = generating("x" * (17 * 1024 * 1024))
        assert len(gzip.compress(request.SerializeToString(), 1)) < 100_000
        error = await failing(stub.Generate(request, compression=compression))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in (error.details() or "")
        assert text_of(await deltas(stub.Generate(generating()))) == answer("hello", 20)


async def test_millions_of_empty_messages_are_refused_before_they_are_made() -> None:
    async with gateway_on_fakes() as fleet, grpc.aio.insecure_channel(fleet.grpc) as channel:
        call: Any = channel.unary_stream("/tokenfleet.v1.Inference/Chat")
        started = time.process_time()
        error = await failing(call(b"\x0a\x07letters" + b"\x12\x00" * 4_000_000))
        assert failure_of(error)[:2] == ("INVALID_ARGUMENT", "messages")
        assert time.process_time() - started < 1


async def test_a_message_may_be_as_large_as_a_body() -> None:
    async with stub_on_fakes(max_body_bytes=10_000) as (_, stub):
        assert text_of(await deltas(stub.Generate(generating("x" * 9_000)))) == answer("x" * 9_000, 20)
        error = await failing(stub.Generate(generating("x" * 10_000)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_ids_beyond_the_context_bother_no_tokenizer() -> None:
    async with stub_on_fakes() as (fleet, stub):
        tokens = tokenizer_pb2.TokenInput(token_ids=[1] * (CONTEXT + 1))
        error = await failing(stub.Generate(api.GenerateRequest(model="letters", tokens=tokens)))
        assert failure_of(error)[:2] == ("CONTEXT_LENGTH_EXCEEDED", "messages")
        assert not fleet.tokenizer.jobs


async def test_compressed_requests_are_served() -> None:
    async with stub_on_fakes() as (_, stub):
        seen = await deltas(stub.Generate(generating("x" * 5000), compression=grpc.Compression.Gzip))
        assert text_of(seen) == answer("x" * 5000, 20)


async def test_shedding_tells_when_to_come_back_and_nothing_was_sent_before() -> None:
    async with stub_on_fakes([("grpc.enable_retries", 0)]) as (fleet, stub):
        fleet.router.failure = pb.Failure(
            reason=pb.REASON_QUEUE_FULL, message="queue full", retry_after_ms=1500
        )
        call = stub.Chat(chatting(request_id="mine"))
        error = await failing(call)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert failure_of(error) == ("QUEUE_FULL", "", 1.5)
        trailers = dict(error.trailing_metadata() or ())
        assert trailers["grpc-retry-pushback-ms"] == "1500"
        assert trailers["x-request-id"] == "mine"
        assert not error.initial_metadata()


@pytest.mark.parametrize(("reason", "retry_after_ms"), [("QUOTA_EXCEEDED", 100), ("QUEUE_FULL", 60_000)])
async def test_libraries_are_told_not_to_retry_what_would_take_long(reason: str, retry_after_ms: int) -> None:
    async with stub_on_fakes() as (fleet, stub):
        fleet.router.failure = pb.Failure(
            reason=pb.Reason.Value(f"REASON_{reason}"), message="no", retry_after_ms=retry_after_ms
        )
        error = await failing(stub.Chat(chatting()))
        assert dict(error.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "-1"
        assert failure_of(error)[2] == retry_after_ms / 1000


async def test_the_deadline_of_the_call_frees_the_worker() -> None:
    async with stub_on_fakes() as (fleet, stub):
        fleet.workers[0].hold = True
        error = await failing(stub.Chat(chatting(), timeout=0.3))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0 < fleet.workers[0].submits[0].context.deadline_ms <= 300
        await until(lambda: fleet.workers[0].cancels)
        metrics = (await fleet.http.get("/metrics")).text
        assert 'tokenfleet_gateway_requests_total{code="deadline_exceeded"} 1.0' in metrics


async def test_the_gateways_own_deadline_is_typed() -> None:
    async with stub_on_fakes(request_timeout_s=0.3) as (fleet, stub):
        fleet.workers[0].hold = True
        error = await failing(stub.Chat(chatting(), timeout=60))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert failure_of(error)[0] == "DEADLINE_EXCEEDED"
        await until(lambda: fleet.workers[0].cancels)


async def test_a_client_that_leaves_is_cancelled_on_its_worker() -> None:
    async with stub_on_fakes() as (fleet, stub):
        call = stub.Chat(chatting(max_tokens=50_000, n=2))
        await anext(aiter(call))
        call.cancel()
        await until(lambda: len(fleet.workers[0].cancels) == 2)
        await until(lambda: len(fleet.router.releases) == 2)
        outcomes = {release.outcome for release in fleet.router.releases}
        assert outcomes == {router_pb2.Release.OUTCOME_CANCELLED}
        metrics = (await fleet.http.get("/metrics")).text
        assert 'tokenfleet_gateway_requests_total{code="cancelled"} 1.0' in metrics
        assert "tokenfleet_gateway_requests_running 0.0" in metrics


async def test_a_client_that_leaves_while_waiting_cancels_its_ask() -> None:
    async with stub_on_fakes() as (fleet, stub):
        fleet.router.silent = True
        call = stub.Chat(chatting())
        await until(lambda: fleet.router.asks)
        call.cancel()
        await until(lambda: fleet.router.cancels == [fleet.router.asks[0].ask_id])


async def test_a_broken_answer_keeps_what_it_had_and_ends_typed() -> None:
    async with stub_on_fakes() as (fleet, stub):
        fleet.workers[0].fail = lambda _, running: (
            None if running.tokens < 4 else pb.Failure(reason=pb.REASON_ENGINE_FAILED, message="made to")
        )
        before: list[api.ChatResponse] = []
        error = await failing(stub.Chat(chatting()), before)
        assert failure_of(error)[0] == "NO_WORKER"
        seen = [response.delta for response in before]
        assert text_of(seen) == answer("hello", 4)
        assert not any(delta.finish_reason for delta in seen)


# What a client takes without reading: gRPC's own buffers, here made small.
NARROW = [("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0)]


async def test_a_slow_reader_gets_larger_messages_and_loses_nothing() -> None:
    async with stub_on_fakes(NARROW) as (fleet, stub):
        call = stub.Chat(chatting(max_tokens=600, n=16))
        first = await anext(aiter(call))
        await until(lambda: fleet.workers[0].submits and not fleet.workers[0].running)
        seen = [first.delta, *await deltas(call)]
        expected = answer("hello", 600)
        assert [text_of(seen, index) for index in range(16)] == [expected] * 16
        assert max(len(delta.text) for delta in seen) > 100


async def test_a_reader_that_is_too_slow_loses_its_call_and_frees_the_worker() -> None:
    async with stub_on_fakes(NARROW, client_buffer_bytes=4096) as (fleet, stub):
        call = stub.Chat(chatting(max_tokens=3_000, n=16))
        await anext(aiter(call))
        await until(lambda: fleet.workers[0].cancels)
        error = await failing(call)
        assert error.code() is grpc.StatusCode.ABORTED
        assert failure_of(error)[0] == "SLOW_CONSUMER"


async def test_the_client_hears_of_a_load_only_when_it_takes_long() -> None:
    async with stub_on_fakes(decision_wait_s=0.2) as (fleet, stub):
        fleet.router.silent = True
        call = stub.Chat(chatting())
        await until(lambda: fleet.router.asks)
        ask = fleet.router.asks[0]

        def decide(decision: router_pb2.Decision) -> None:
            fleet.router.open_links[0].send(router_pb2.ScheduleResponse(decisions=[decision]))

        for done in (10, 40):
            load = pb.LoadProgress(
                model="letters", stage=pb.LoadProgress.STAGE_FETCHING, bytes_done=done, bytes_total=100
            )
            decide(router_pb2.Decision(ask_id=ask.ask_id, waiting=router_pb2.Waiting(load=load)))
        arriving = aiter(call)
        first = (await anext(arriving)).delta
        assert first.loading.bytes_done == 40
        assert first.request_id
        decide(fleet.router.decide(ask))
        rest = [response.delta async for response in arriving]
        assert text_of(rest) == answer("hello", 20)
        assert not any(delta.HasField("loading") for delta in rest)


async def test_stopping_lets_answers_finish() -> None:
    async with stub_on_fakes(grace_s=20) as (fleet, stub):
        fleet.workers[0].hold = True
        call = stub.Chat(chatting())
        await until(lambda: fleet.workers[0].running)
        fleet.lifecycle.stopping.set()
        await until_refused(fleet)
        fleet.workers[0].hold = False
        fleet.workers[0].step()
        assert text_of(await deltas(call)) == answer("hello", 20)


async def test_what_outlives_the_grace_is_told_to_go_elsewhere() -> None:
    async with stub_on_fakes(grace_s=0.5) as (fleet, stub):
        fleet.workers[0].hold = True
        call = stub.Chat(chatting())
        await until(lambda: fleet.workers[0].running)
        fleet.lifecycle.stopping.set()
        error = await failing(call)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert failure_of(error)[0] == "DRAINING"
        await until(lambda: fleet.workers[0].cancels)


async def until_refused(fleet: FakeFleet) -> None:
    """Until the gateway accepts no new connection."""
    host, port = fleet.grpc.split(":")
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.01)
