"""The stock `openai` package against a fleet with the real model."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.e2e.catalogs import real, write_catalog
from tests.e2e.sim_fleet import scrape, until_served
from tests.e2e.streams import chat, stream
from tokenfleet.cli.local_fleet import FleetSpec, LocalFleet

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.real_model,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
]

MODEL = "smollm2"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalFleet]:
    """Two llama.cpp workers; the last test of the module kills one."""
    path = tmp_path_factory.mktemp("real")
    catalog = write_catalog(path / "catalog.yaml", real(MODEL))
    async with LocalFleet(FleetSpec(state_dir=path / "state", catalog=catalog, grace_s=3)) as started:
        await until_served(started, MODEL)
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def client(fleet: LocalFleet) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{fleet.http_url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


async def test_streamed_and_whole_answers_are_the_same_sane_english(client: AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    common = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 24}
    whole = await client.chat.completions.create(**common)  # type: ignore[call-overload]
    pieces: list[str] = []
    usage: Any = None
    async for chunk in await client.chat.completions.create(  # type: ignore[call-overload]
        **common, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    text = whole.choices[0].message.content
    assert "Paris" in text
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 3, "the answer must stream, not arrive at once"
    for seen in (whole.usage, usage):
        assert seen.total_tokens == seen.prompt_tokens + seen.completion_tokens
        assert 0 < seen.completion_tokens <= 24
    assert usage.completion_tokens == whole.usage.completion_tokens


async def test_several_answers_and_stop(client: AsyncOpenAI) -> None:
    answers = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Count from one to ten: one, two,"}],
        n=2,
        temperature=0,
        max_tokens=24,
        stop=[","],
    )
    assert len(answers.choices) == 2
    assert [choice.index for choice in answers.choices] == [0, 1]
    for choice in answers.choices:
        assert "," not in (choice.message.content or "")
    assert answers.usage is not None
    assert answers.usage.total_tokens == answers.usage.prompt_tokens + answers.usage.completion_tokens


async def test_sixteen_streams_at_once_are_not_mixed_up(fleet: LocalFleet) -> None:
    """Each answer is compared with what every question gets alone.

    In a batch the kernels may round differently, so that an answer leaves its path, even for words that open
    some other answer too. It never becomes another's whole answer, and most stay what they are alone.
    """
    topics = "cats rain iron music bread ships snow trees gold birds fire maps salt clocks wool bees".split()

    async def ask(topic: str) -> str:
        answer = await chat(fleet.http_url, MODEL, f"Write one sentence about {topic}.", 12)
        assert not answer.error
        return answer.text

    alone = {topic: await ask(topic) for topic in topics}
    together = dict(zip(topics, await asyncio.gather(*(ask(topic) for topic in topics)), strict=True))
    for topic, text in together.items():
        strangers = [other for other in topics if text == alone[other] != alone[topic]]
        assert not strangers, f"{topic} got the answer of {strangers}: {text!r}"
    kept = [topic for topic in topics if together[topic] == alone[topic]]
    assert len(kept) >= len(topics) / 2, f"only {kept} got what they get alone"


async def test_errors_are_the_clients_own_exceptions(client: AsyncOpenAI) -> None:
    hello = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.NotFoundError, match="nope"):
        await client.chat.completions.create(model="nope", messages=hello)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="8192"):
        await client.chat.completions.create(model=MODEL, messages=hello, max_tokens=9000)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="messages"):
        await client.chat.completions.create(model=MODEL, messages=[])


async def test_killed_real_worker_keeps_the_promise(fleet: LocalFleet) -> None:
    """Delivered ids never change; what follows is what a like worker says to prompt + delivered ids.

    Kernels whose result depends on the batch may leave the undisturbed path anywhere, so the judgement is on
    the first id after the seam, where a lost or repeated token would show in every stream.
    """
    tokens = 40
    asking = asyncio.gather(
        *(
            chat(
                fleet.http_url,
                MODEL,
                f"Tell me about the number {number}.",
                tokens,
                return_token_ids=True,
                ignore_eos=True,
            )
            for number in range(8)
        )
    )
    metrics, counter = f"{fleet.http_url}/metrics", 'tokenfleet_gateway_tokens_total{kind="completion"}'
    before = await scrape(metrics, counter)
    async with asyncio.timeout(60):
        while await scrape(metrics, counter) < before + 8 * tokens / 4:
            await asyncio.sleep(0.02)
    fleet.kill("worker-0")
    answers = await asyncio.wait_for(asking, 120)
    assert [answer.error for answer in answers] == [""] * 8
    assert [len(answer.ids) for answer in answers] == [tokens] * 8
    assert [answer.usage["completion_tokens"] for answer in answers] == [tokens] * 8
    resumed = [answer for answer in answers if len(answer.attempts) > 1 and answer.attempts[-1]["from_token"]]
    assert len(resumed) >= 2, "the killed worker must have had streams in mid-answer"
    kept = 0
    for answer in resumed:
        seam = answer.attempts[-1]["from_token"]
        body = {
            "model": MODEL,
            "prompt": answer.prompt_ids + answer.ids[:seam],
            "max_tokens": 1,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        again = await stream(fleet.http_url, "/v1/completions", body)
        kept += again.ids == answer.ids[seam : seam + 1]
    assert kept > len(resumed) / 2, f"only {kept} of {len(resumed)} streams went on as they should"
