"""The SDK on a real gateway: answers, their deltas, and leaving early."""

import asyncio
import gc
from typing import Any

import pytest

from tests.contract.any_client import KINDS, client_of, until
from tests.contract.fake_fleet import CONTEXT, answer, breaking_after, gateway_on_fakes
from tokenfleet.client import (
    AsyncFleetClient,
    Cancelled,
    Delta,
    FleetClient,
    Message,
    Model,
    TokenCount,
    Usage,
)
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import router_pb2

either = pytest.mark.parametrize("kind", KINDS)


@either
async def test_deltas_add_up_to_the_answer(kind: str) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc) as client:
        deltas = await client.deltas("chat", "letters", "hello", max_tokens=20)
        assert "".join(delta.text for delta in deltas) == answer("hello", 20)
        assert deltas[-1].finish_reason == "length"
        assert deltas[-1].usage == Usage(prompt_tokens=5, completion_tokens=20, cached_tokens=0)
        whole = await client.result("chat", "letters", "hello", max_tokens=20)
        assert whole.text == answer("hello", 20)
        assert whole.usage == deltas[-1].usage
        assert whole.model == "letters"
        assert whole.request_id


@either
async def test_several_answers_keep_apart(kind: str) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc) as client:
        whole = await client.result(
            "generate", "letters", "hello", n=3, max_tokens=20, return_token_ids=True, request_id="mine"
        )
        assert [choice.text for choice in whole.choices] == [answer("hello", 20)] * 3
        assert [choice.finish_reason for choice in whole.choices] == ["length"] * 3
        for choice in whole.choices:
            assert "".join(chr(97 + token) for token in choice.token_ids) == choice.text
        assert whole.usage.total_tokens == 65
        assert whole.request_id == "mine"


@either
async def test_prompts_are_text_ids_or_conversations(kind: str) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc) as client:
        ids = await client.result("generate", "letters", list(b"hello"), max_tokens=5)
        assert ids.text == answer("hello", 5)
        turns: list[Any] = [Message("system", "be brief"), {"role": "user", "content": "hello"}]
        assert (await client.result("chat", "letters", turns, max_tokens=5)).text == answer("hello", 5)
        chat = fleet.tokenizer.jobs[-1].chat
        assert [(message.role, message.content) for message in chat.messages] == [
            ("system", "be brief"),
            ("user", "hello"),
        ]
        assert chat.add_generation_prompt


@either
async def test_options_reach_the_worker(kind: str) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc) as client:
        await client.result(
            "chat",
            "letters",
            "hello",
            max_tokens=5,
            temperature=0,
            top_k=40,
            seed=2**64 - 1,
            stop=["\n", "end"],
            stop_token_ids=[7],
            ignore_eos=True,
            min_tokens=2,
            priority="interactive",
        )
        submit = fleet.workers[0].submits[0]
        assert submit.max_tokens == 5
        assert submit.context.priority == pb.PRIORITY_INTERACTIVE
        assert submit.sampling == pb.SamplingParams(
            temperature=0,
            top_k=40,
            seed=2**64 - 1,
            stop=["\n", "end"],
            stop_token_ids=[7],
            ignore_eos=True,
            min_tokens=2,
        )


@either
async def test_counting_and_listing(kind: str) -> None:
    async with gateway_on_fakes() as fleet, client_of(kind, fleet.grpc) as client:
        assert await client.call("count_tokens", "letters", "hello") == TokenCount(5, CONTEXT)
        counted = await client.call("count_tokens", "letters", messages="hello!")
        assert counted == TokenCount(6, CONTEXT)
        model = Model("letters", context_length=CONTEXT, resident=True, created_unix_s=0)
        assert await client.call("models") == [model]


@either
@pytest.mark.parametrize("tokens", [1, 10, 20])
async def test_a_migration_is_invisible(kind: str, tokens: int) -> None:
    async with gateway_on_fakes(workers=2) as fleet, client_of(kind, fleet.grpc) as client:
        fleet.workers[0].fail = breaking_after(tokens)
        whole = await client.result("chat", "letters", "hello", max_tokens=20, return_token_ids=True)
        assert whole.text == answer("hello", 20)
        assert len(whole.choices[0].token_ids) == whole.usage.completion_tokens == 20
        assert fleet.workers[1].submits


@either
async def test_news_of_a_load_come_as_deltas_without_text(kind: str) -> None:
    async with gateway_on_fakes(decision_wait_s=0) as fleet, client_of(kind, fleet.grpc) as client:
        fleet.router.silent = True
        seen: list[Delta] = []
        asking = asyncio.create_task(client.read(seen, "chat", "letters", "hello", max_tokens=5))
        await until(lambda: fleet.router.asks)
        ask = fleet.router.asks[0]
        load = pb.LoadProgress(
            model="letters",
            stage=pb.LoadProgress.STAGE_STARTING_ENGINE,
            bytes_done=3,
            bytes_total=4,
            eta_ms=1500,
        )
        waiting = router_pb2.Decision(ask_id=ask.ask_id, waiting=router_pb2.Waiting(load=load))
        link = fleet.router.open_links[0]
        link.send(router_pb2.ScheduleResponse(decisions=[waiting]))
        await until(lambda: seen)
        link.send(router_pb2.ScheduleResponse(decisions=[fleet.router.decide(ask)]))
        await asking
        first, *rest = seen
        assert first.text == ""
        assert first.loading is not None
        assert (first.loading.stage, first.loading.eta_s) == ("starting_engine", 1.5)
        assert "".join(delta.text for delta in rest) == answer("hello", 5)


def leave_sync(target: str, how: str) -> Delta | None:
    """Reads one delta, leaves, and answers what a further read gives."""
    with FleetClient(target) as client:
        stream = client.chat("letters", "hello", max_tokens=50_000)
        next(stream)
        if how == "forgotten":
            del stream
            gc.collect()
            return None
        if how == "with":
            with stream:
                pass
        else:
            stream.close()
        with pytest.raises(Cancelled, match="before its end"):
            stream.result()
        return next(stream, None)


async def leave_async(target: str, how: str) -> Delta | None:
    async with AsyncFleetClient(target) as client:
        stream = client.chat("letters", "hello", max_tokens=50_000)
        await anext(stream)
        if how == "forgotten":
            del stream
            return None
        if how == "with":
            async with stream:
                pass
        else:
            await stream.aclose()
        with pytest.raises(Cancelled, match="before its end"):
            await stream.result()
        return await anext(stream, None)


@either
@pytest.mark.parametrize("how", ["close", "with", "forgotten"])
async def test_leaving_a_stream_frees_its_worker(kind: str, how: str) -> None:
    async with gateway_on_fakes() as fleet:
        if kind == "sync":
            left = await asyncio.to_thread(leave_sync, fleet.grpc, how)
        else:
            left = await leave_async(fleet.grpc, how)
        assert left is None
        await until(lambda: fleet.workers[0].cancels)


@either
async def test_closing_the_client_ends_its_streams(kind: str) -> None:
    async with gateway_on_fakes() as fleet:
        async with client_of(kind, fleet.grpc) as client:
            asking = asyncio.create_task(client.result("chat", "letters", "hello", max_tokens=50_000))
            await until(lambda: fleet.workers[0].running)
        with pytest.raises(Cancelled):
            await asking
        with pytest.raises(Cancelled):
            await client.result("chat", "letters", "hello")
        with pytest.raises(Cancelled):
            await client.call("models")
        await until(lambda: fleet.workers[0].cancels)


async def test_a_stream_can_be_closed_from_another_thread() -> None:
    async with gateway_on_fakes() as fleet:
        fleet.workers[0].hold = True
        with FleetClient(fleet.grpc) as client:
            stream = client.chat("letters", "hello")
            reading = asyncio.create_task(asyncio.to_thread(list, stream))
            await until(lambda: fleet.workers[0].running)
            stream.close()
            assert await reading == []
            await until(lambda: fleet.workers[0].cancels)


async def test_a_cancelled_task_is_cancelled_and_so_is_its_request() -> None:
    async with gateway_on_fakes() as fleet, AsyncFleetClient(fleet.grpc) as client:
        fleet.workers[0].hold = True
        asking = asyncio.create_task(client.chat("letters", "hello").text())
        await until(lambda: fleet.workers[0].running)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: fleet.workers[0].cancels)


async def test_many_threads_share_a_client() -> None:
    async with gateway_on_fakes(workers=2) as fleet:
        with FleetClient(fleet.grpc) as client:

            def ask(prompt: str) -> str:
                return client.chat("letters", prompt, max_tokens=20).text()

            prompts = [f"prompt {number}" for number in range(12)]
            texts = await asyncio.gather(*(asyncio.to_thread(ask, prompt) for prompt in prompts))
        assert texts == [answer(prompt, 20) for prompt in prompts]
