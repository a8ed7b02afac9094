"""Clients that people have already, unmodified: LangChain, and all of what the OpenAI SDK offers.

On the simulated engine, whose answer depends on every token before it: that each way of asking brings the
same text, and the same count of its tokens, shows that nothing is lost on any of them.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
import pytest_asyncio
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import SecretStr

from tests.e2e.catalogs import simulated, write_catalog
from tests.e2e.sim_fleet import until_running, until_served
from tests.e2e.streams import chat
from tokenfleet.cli.local_fleet import FleetSpec, LocalFleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

MODEL, NARROW = "sim", "narrow"
PROMPT = "What is the capital of France?"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": PROMPT}]
TOKENS = 24


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalFleet]:
    """One worker; its model `narrow` runs one sequence at a time and may let one wait."""
    path = tmp_path_factory.mktemp("stock")
    timing = {"profile": "fixed", "ttft_ms": 5, "itl_ms": 10, "mean_output_tokens": 0}
    catalog = write_catalog(
        path / "catalog.yaml",
        simulated(MODEL, **timing, max_sequences=64),
        simulated(NARROW, **timing, max_sequences=1),
    )
    spec = FleetSpec(
        state_dir=path / "state",
        workers=1,
        tokenizers=1,
        engines=("sim",),
        catalog=catalog,
        grace_s=3,
        flags={"router": ("--queue-limit", "1")},
    )
    async with LocalFleet(spec) as started:
        for model in (MODEL, NARROW):
            await until_served(started, model)
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reference(fleet: LocalFleet) -> str:
    """What the fleet answers to PROMPT, read from the bare socket."""
    answer = await chat(fleet.http_url, MODEL, PROMPT, TOKENS)
    assert answer.done
    assert len(answer.text) > TOKENS
    return answer.text


@pytest_asyncio.fixture(loop_scope="module")
async def client(fleet: LocalFleet) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{fleet.http_url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def langchain(fleet: LocalFleet) -> AsyncIterator[ChatOpenAI]:
    """Its own connections are kept until the interpreter ends; these are closed."""
    with openai.DefaultHttpxClient() as sync_client:
        async with openai.DefaultAsyncHttpxClient() as async_client:
            yield ChatOpenAI(
                base_url=f"{fleet.http_url}/v1",
                api_key=SecretStr("none"),
                model=MODEL,
                temperature=0,
                max_completion_tokens=TOKENS,
                timeout=60,
                max_retries=0,
                stream_usage=True,
                http_client=sync_client,
                http_async_client=async_client,
            )


async def test_langchain_invokes_streams_and_batches(langchain: ChatOpenAI, reference: str) -> None:
    whole = await asyncio.to_thread(langchain.invoke, PROMPT)
    assert isinstance(whole, AIMessage)
    assert whole.content == reference
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == TOKENS
    assert whole.response_metadata["finish_reason"] == "length"

    def streamed() -> list[AIMessageChunk]:
        return list(langchain.stream(PROMPT))

    for chunks in (await asyncio.to_thread(streamed), [chunk async for chunk in langchain.astream(PROMPT)]):
        assert "".join(str(chunk.content) for chunk in chunks) == reference
        assert sum(bool(chunk.content) for chunk in chunks) > TOKENS / 2, "it must stream"
        usages = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
        assert [usage["output_tokens"] for usage in usages] == [TOKENS]

    several: list[LanguageModelInput] = [
        [HumanMessage(PROMPT)],
        [SystemMessage("You are a poet."), HumanMessage(PROMPT)],
    ]
    answers = await asyncio.to_thread(langchain.batch, several)
    assert answers[0].content == reference
    assert answers[1].content != reference
    assert [answer.content for answer in await langchain.abatch(several)] == [
        each.content for each in answers
    ]


async def test_langchain_chain_that_is_left_frees_the_worker(
    fleet: LocalFleet, langchain: ChatOpenAI
) -> None:
    stream = langchain.bind(max_completion_tokens=4000).astream(PROMPT)
    async with asyncio.timeout(30):
        await anext(stream)
        await until_running(fleet, 1)
        await stream.aclose()  # type: ignore[attr-defined]
        await until_running(fleet, 0)


async def test_langchain_shows_the_fleets_own_error(langchain: ChatOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nope"):
        await langchain.bind(model="nope").ainvoke(PROMPT)


async def test_the_sdks_streaming_helper(client: AsyncOpenAI, reference: str) -> None:
    """The helper takes an answer that is cut at its limit for an error, so this one ends at a stop string."""
    stop = reference[len(reference) // 2 :][:5]
    expected = reference.partition(stop)[0]
    async with client.chat.completions.stream(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=TOKENS,
        stop=stop,
        stream_options={"include_usage": True},
    ) as stream:
        deltas = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()
    assert "".join(deltas) == expected == final.choices[0].message.content
    assert len(deltas) > 2, "it must stream"
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None
    assert 0 < final.usage.completion_tokens < TOKENS


async def test_leaving_the_streaming_helper_frees_the_worker(fleet: LocalFleet, client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model=MODEL, messages=MESSAGES, max_tokens=4000) as stream:
        async for event in stream:
            if event.type == "content.delta":
                await until_running(fleet, 1)
                break
    await until_running(fleet, 0)


async def test_raw_and_streaming_responses(client: AsyncOpenAI, reference: str) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=TOKENS,
        extra_headers={"X-Request-Id": "from-a-stock-client"},
    )
    assert raw.status_code == 200
    assert raw.request_id == raw.headers["x-request-id"] == "from-a-stock-client"
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.content == reference
    async with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=MESSAGES, max_tokens=TOKENS, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > TOKENS / 2


async def test_the_legacy_completions_and_the_list_of_models(client: AsyncOpenAI) -> None:
    whole = await client.completions.create(model=MODEL, prompt="Once upon", max_tokens=TOKENS)
    stream = await client.completions.create(model=MODEL, prompt="Once upon", max_tokens=TOKENS, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text
    assert {model.id async for model in client.models.list()} == {MODEL, NARROW}
    assert (await client.models.retrieve(MODEL)).id == MODEL


async def test_a_client_side_timeout_is_its_own_error_and_cancels(
    fleet: LocalFleet, client: AsyncOpenAI
) -> None:
    hurried = client.with_options(timeout=1.0)
    with pytest.raises(openai.APITimeoutError):
        await hurried.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8000)
    await until_running(fleet, 0)


async def test_a_429_is_sent_again_after_the_time_that_it_asks_for(fleet: LocalFleet) -> None:
    seen: list[tuple[float, int, float]] = []  # when it came, its status, the pause it asks for

    async def note(response: Any) -> None:
        pause = float(response.headers.get("retry-after", "0"))
        seen.append((time.monotonic(), response.status_code, pause))

    async with AsyncOpenAI(
        base_url=f"{fleet.http_url}/v1",
        api_key="none",
        max_retries=5,
        http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [note]}),
    ) as client:
        ask = client.chat.completions.create
        async with crowd(fleet, NARROW) as leave:
            with pytest.raises(openai.RateLimitError) as refused:
                await client.with_options(max_retries=0).chat.completions.create(
                    model=NARROW, messages=MESSAGES, max_tokens=2
                )
            assert refused.value.code == "queue_full"
            seen.clear()
            patient = asyncio.create_task(ask(model=NARROW, messages=MESSAGES, max_tokens=2))
            async with asyncio.timeout(90):
                while not seen:
                    await asyncio.sleep(0.01)
                await leave()
                answer = await patient
    assert answer.choices[0].message.content
    statuses = [status for _, status, _ in seen]
    assert (statuses[0], statuses[-1]) == (429, 200)
    for (at, _, pause), (then, _, _) in itertools.pairwise(seen):
        assert pause >= 1, "a refusal says when to come again"
        assert then - at >= pause, f"the client waited {then - at:.2f} s instead of {pause} s"


@asynccontextmanager
async def crowd(fleet: LocalFleet, model: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Endless streams, so many that the next request is refused; what it yields makes them leave."""
    streams = [asyncio.create_task(chat(fleet.http_url, model, f"crowd {i}", 4000)) for i in range(8)]

    async def leave() -> None:
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)

    try:
        done, _ = await asyncio.wait(streams, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert {stream.result().status for stream in done} == {429}
        yield leave
    finally:
        await leave()
