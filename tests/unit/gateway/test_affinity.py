"""Which tokenizer a conversation goes to: always the same, however many others begin as it does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tokenfleet.gateway import tokenizer_pool
from tokenfleet.gateway.grpc.requests import read_chat
from tokenfleet.gateway.http.answers import chat_prompt
from tokenfleet.gateway.http.schemas import Message
from tokenfleet.gateway.tokenizer_pool import BOUNDED_LOAD, TokenizerPool
from tokenfleet.runtime.discovery import Peer
from tokenfleet.v1 import inference_pb2, tokenizer_pb2

Turn = tuple[str, str]
TARGETS = ("one:1", "two:2", "three:3")
SYSTEM = ("system", "You are the shop's assistant.")


def over_http(*messages: Turn) -> str:
    asked = [Message.model_validate({"role": role, "content": text}) for role, text in messages]
    return chat_prompt(asked, add_generation_prompt=True).affinity


def over_grpc(*messages: Turn) -> str:
    asked = [tokenizer_pb2.ChatMessage(role=role, content=text) for role, text in messages]
    request = inference_pb2.ChatRequest(model="m", messages=asked)
    return read_chat(request.SerializeToString(), 1).prompt.affinity


@pytest.fixture(params=[over_http, over_grpc])
def affinity(request: pytest.FixtureRequest) -> Callable[..., str]:
    chosen: Callable[..., str] = request.param
    return chosen


def test_turns_of_one_conversation_agree(affinity: Callable[..., str]) -> None:
    talk = [SYSTEM, ("user", "Where is my parcel?"), ("assistant", "On its way."), ("user", "Since when?")]
    assert len({affinity(*talk[:length]) for length in (2, 3, 4)}) == 1


def test_conversations_behind_one_system_prompt_differ(affinity: Callable[..., str]) -> None:
    assert affinity(SYSTEM, ("user", "A")) != affinity(SYSTEM, ("user", "B"))
    assert affinity(("developer", "Be brief."), ("user", "A")) != affinity(
        ("developer", "Be brief."), ("user", "B")
    )


def test_the_system_prompt_tells_conversations_apart(affinity: Callable[..., str]) -> None:
    assert affinity(SYSTEM, ("user", "Hello")) != affinity(("user", "Hello"))
    assert affinity(SYSTEM, ("system", "A"), ("user", "Hello")) != affinity(SYSTEM, ("user", "Hello"))


def test_instructions_alone_are_a_conversation(affinity: Callable[..., str]) -> None:
    assert affinity(SYSTEM) != affinity(("system", "Another."))


def test_long_texts_are_cut(affinity: Callable[..., str]) -> None:
    long = "x" * 100_000
    assert len(affinity(("system", long), ("system", long), ("user", long))) < 10_000
    assert affinity(("system", long), ("user", "A")) != affinity(("system", long), ("user", "B"))


def test_a_message_given_as_json_counts() -> None:
    def key(raw: str) -> str:
        asked = [tokenizer_pb2.ChatMessage(role="user", raw_json=raw)]
        return read_chat(
            inference_pb2.ChatRequest(model="m", messages=asked).SerializeToString(), 1
        ).prompt.affinity

    assert key('{"role":"user","content":[{"type":"text","text":"A"}]}') != key('{"role":"user"}')


class Tokenizers:
    """Counts the jobs that each gets; answers at once, or never."""

    def __init__(self, *, answer: bool) -> None:
        self.asked: Counter[str] = Counter()
        self._answer = answer

    def link(self, target: str, *_: Any, on_received: Callable[..., None], **__: Any) -> Any:
        class LinkThatIsUp:
            up = True

            def start(self) -> None: ...

            async def stop(self) -> None: ...

            def send(self, message: tokenizer_pb2.EncodeRequest) -> None:
                received(target, message, on_received)

        received = self._received
        return LinkThatIsUp()

    def _received(
        self, target: str, message: tokenizer_pb2.EncodeRequest, on_received: Callable[..., None]
    ) -> None:
        self.asked[target] += len(message.jobs)
        if self._answer:
            results = [tokenizer_pb2.EncodeResult(job_id=job.job_id) for job in message.jobs]
            asyncio.get_running_loop().call_soon(on_received, [tokenizer_pb2.EncodeResponse(results=results)])


@asynccontextmanager
async def pool_of(tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TokenizerPool]:
    monkeypatch.setattr(tokenizer_pool, "PersistentLink", tokenizers.link)
    pool = TokenizerPool(frames=False)
    for target in TARGETS:
        pool.peer_came(Peer(target))
    async with asyncio.timeout(20):
        yield pool
        await pool.stop()


async def test_conversations_spread_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers = Tokenizers(answer=True)
    async with pool_of(tokenizers, monkeypatch) as pool:
        homes: list[str] = []
        for number in range(60):
            talk = [SYSTEM, ("user", f"question {number}"), ("assistant", "answer"), ("user", "another")]
            before = tokenizers.asked.copy()
            for length in (2, 4):
                await pool.encode(tokenizer_pb2.EncodeJob(), "tenant" + over_http(*talk[:length]))
            met = tokenizers.asked - before
            assert list(met.values()) == [2], met
            homes += met
    assert set(homes) == set(TARGETS)


async def test_a_popular_beginning_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers = Tokenizers(answer=False)
    jobs = 60
    async with pool_of(tokenizers, monkeypatch) as pool:
        key = over_http(SYSTEM, ("user", "Hello"))
        asking = [asyncio.create_task(pool.encode(tokenizer_pb2.EncodeJob(), key)) for _ in range(jobs)]
        while tokenizers.asked.total() < jobs:
            await asyncio.sleep(0)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    # one job above the bound, which itself counts the job that is to be placed
    assert max(tokenizers.asked.values()) <= BOUNDED_LOAD * jobs / len(TARGETS) + 2
    assert min(tokenizers.asked.values()) > 0
