"""What every engine has to do, through a real worker. A new engine joins by a line in `CASES`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import pytest_asyncio
from tokenizers import Tokenizer

from tests import real_model
from tests.contract.worker_process import TIMEOUT_S, Gateway, Stream, WorkerProcess, running_worker, spec
from tests.engines.installed import needs
from tests.engines.vllm_server import vllm_server
from tokenfleet.core.blocks import block_hashes
from tokenfleet.runtime.models import Vocabulary, load_vocabulary
from tokenfleet.v1 import common_pb2, worker_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

STOP = common_pb2.FINISH_REASON_STOP
LENGTH = common_pb2.FINISH_REASON_LENGTH
GREEDY = {"temperature": 0}
FULL = {**GREEDY, "ignore_eos": True}

# few sequences at once, so that some have to wait, and a cache that a few long prompts fill
SIM = {"profile": "fixed", "mean_output_tokens": 32, "max_sequences": 4, "kv_blocks": 640}
VLLM = {"max_model_len": 1024, "max_num_seqs": 4, "kv_cache_memory_bytes": 48 << 20}
# not the model's own bfloat16: there, as in any engine, the company in a batch may decide between near equals
TRANSFORMERS = {"dtype": "float32", "max_batch": 4}
CASES = [
    pytest.param(("sim", SIM), id="sim"),
    pytest.param(("llamacpp", {"n_parallel": 4}), id="llamacpp", marks=pytest.mark.real_model),
    pytest.param(("vllm", VLLM), id="vllm", marks=needs("vllm")),
    pytest.param(("transformers", TRANSFORMERS), id="transformers", marks=needs("torch", "transformers")),
    # a bare `vllm serve --grpc`, with the same settings
    pytest.param(
        ("remote", VLLM),
        id="remote",
        marks=[*needs("vllm", "smg_grpc_servicer"), pytest.mark.timeout(600)],  # the server's start is in it
    ),
    pytest.param(("trtllm", {}), id="trtllm", marks=needs("tensorrt_llm")),
]
BLOCK = 32  # tokens in the largest block of an engine's cache here
CAPITALS = ("France", "Italy", "Japan", "Germany")


@dataclass
class Words:
    """The model's tokenizer, as a client of the worker has it."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary

    def chat(self, question: str, answer: str = "") -> list[int]:
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}"
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, ids: list[int]) -> str:
        return b"".join(self.vocabulary.token_bytes[token] for token in ids).decode(errors="replace")


@pytest.fixture(scope="module")
def words() -> Words:
    bundle = real_model.cache().tokenizer(real_model.spec())
    return Words(Tokenizer.from_file(str(bundle.tokenizer_json)), load_vocabulary(bundle))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=CASES)
async def worker(request: pytest.FixtureRequest) -> AsyncIterator[WorkerProcess]:
    engine, arguments = request.param
    async with AsyncExitStack() as stack:
        if engine == "remote":
            address = await stack.enter_async_context(vllm_server(**arguments))
            arguments = {"address": address, "model": "small"}
        process = await stack.enter_async_context(running_worker("--name", "w", "--engines", engine))
        answer = await process.load(spec(engine, **arguments))
        assert answer[-1].progress.stage == common_pb2.LoadProgress.STAGE_READY, answer[-1]
        yield process


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(worker: WorkerProcess) -> AsyncIterator[Gateway]:
    gateway = await worker.connect()
    yield gateway
    assert gateway.problems == []
    await worker.disconnect()


async def answers(gateway: Gateway, prompts: list[list[int]], tokens: int) -> list[Stream]:
    """All prompts at once."""
    streams = [gateway.submit(prompt, tokens, sampling=FULL) for prompt in prompts]
    for stream in streams:
        await stream.ended()
    return streams


async def described(worker: WorkerProcess) -> worker_pb2.ResidentModel:
    call = worker.watch()
    response = await anext(aiter(call))
    call.cancel()
    return response.info.models[0]


async def features(worker: WorkerProcess) -> set[str]:
    return set((await described(worker)).features)


async def cached_blocks(worker: WorkerProcess, expected: list[int]) -> dict[int, int]:
    """The parents of all blocks that the worker says are cached, once those that are expected are."""
    parents: dict[int, int] = {}
    whole = False
    call = worker.watch(cache_events=True, min_interval_ms=1)
    async with asyncio.timeout(TIMEOUT_S):
        async for response in call:
            if response.HasField("cache_snapshot"):
                chunk = response.cache_snapshot
                parents.update(zip(chunk.hashes, chunk.parents, strict=True))
                whole = whole or chunk.last
            for event in response.cache_events:
                parent = event.stored_parent
                for block in event.stored:
                    parents[block] = parent
                    parent = block
                for block in event.removed:
                    parents.pop(block, None)
            if whole and set(expected) <= set(parents):
                break
    call.cancel()
    return parents


def depth(hashes: list[int], parents: dict[int, int]) -> int:
    """How many of a prompt's first blocks are cached, each behind the one before."""
    for number, block in enumerate(hashes):
        if parents.get(block, -1) != (hashes[number - 1] if number else 0):
            return number
    return len(hashes)


async def test_greedy_answers_are_streamed_and_reproducible(gateway: Gateway, words: Words) -> None:
    prompt = words.chat("What is the capital of France?")
    first = await gateway.complete(prompt, 6, sampling=FULL)
    second = await gateway.complete(prompt, 6, sampling=FULL)
    assert first.deltas > 1
    assert first.text == words.text(first.ids)
    assert (first.ids, first.text) == (second.ids, second.text)


async def test_concurrent_answers_are_not_mixed_up(gateway: Gateway, words: Words) -> None:
    prompts = [words.chat(f"What is the capital of {country}?") for country in CAPITALS]
    alone = [(await answers(gateway, [prompt], 6))[0] for prompt in prompts]
    together = await answers(gateway, prompts, 6)
    assert [one.ids for one in together] == [one.ids for one in alone]
    assert len({one.text for one in together}) == len(CAPITALS)


async def test_a_stop_string_over_a_token_border_cuts_the_text(gateway: Gateway, words: Words) -> None:
    prompt = words.chat("What is the capital of France?")
    whole = await gateway.complete(prompt, 6, sampling=FULL)
    pieces = [words.text([token]) for token in whole.ids]
    border = next(i for i in range(2, 6) if len(pieces[i - 1]) > 1 and len(pieces[i]) > 1)
    stop = pieces[border - 1][-1] + pieces[border][:2]
    cut = await gateway.complete(prompt, 6, sampling={**FULL, "stop": [stop]})
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.terminal is not None
    assert (cut.terminal.finish_reason, cut.terminal.stop_matched) == (STOP, stop)


async def test_characters_of_several_tokens_are_whole_and_no_id_is_lost(
    gateway: Gateway, words: Words
) -> None:
    line = "😀🎉你好мир\n"
    prompt = words.chat(f"Repeat for ever: {line}", line * 2)
    stream = await gateway.complete(prompt, 24, sampling=FULL)
    assert stream.text == words.text(stream.ids)
    assert all(not text.startswith("\N{REPLACEMENT CHARACTER}") for text in stream.text.splitlines())


async def test_the_budget_is_used_exactly_when_the_end_token_is_ignored(
    gateway: Gateway, words: Words
) -> None:
    prompt = words.chat("Say hi.")
    stream = await gateway.complete(prompt, 20, sampling=FULL)
    assert len(stream.ids) == 20
    assert stream.terminal is not None
    assert stream.terminal.finish_reason == LENGTH


async def test_an_answer_that_ends_by_itself_ends_with_text(gateway: Gateway, words: Words) -> None:
    stream = await gateway.complete(words.chat("What is the capital of France?"), 500, sampling=GREEDY)
    assert stream.terminal is not None
    assert stream.terminal.finish_reason == STOP
    assert not set(stream.ids) & words.vocabulary.special_ids


async def test_a_cancelled_sequence_is_gone_and_the_next_one_runs(
    worker: WorkerProcess, gateway: Gateway, words: Words
) -> None:
    stream = gateway.submit(words.chat("Count."), 500, sampling=FULL)
    await stream.tokens(2)
    gateway.cancel(stream)
    await stream.ended()
    load = (await worker.load_sample()).models[0]
    assert (load.running, load.waiting, load.kv_blocks_used) == (0, 0, 0)
    assert (await gateway.complete(words.chat("Say hi."), 2, sampling=GREEDY)).ids


async def test_a_prefix_is_computed_once(gateway: Gateway, words: Words) -> None:
    prompt = words.chat("Here is a list: " + ", ".join(str(number) for number in range(12)))
    hashes = block_hashes(prompt, 16)
    first = await gateway.complete(prompt, 2, sampling=GREEDY, block_hashes=hashes)
    second = await gateway.complete(prompt, 2, sampling=GREEDY, block_hashes=hashes)
    assert first.terminal is not None
    assert second.terminal is not None
    assert first.terminal.cached_tokens < 16
    assert second.terminal.cached_tokens >= len(prompt) // 16 * 16 - 16


async def test_the_load_is_seen_while_it_lasts(worker: WorkerProcess, gateway: Gateway, words: Words) -> None:
    slots = (await described(worker)).max_sequences
    call = worker.watch(min_interval_ms=1)
    streams = [gateway.submit(words.chat(f"Tell me of {i}."), 16, sampling=FULL) for i in range(slots + 2)]
    seen: list[worker_pb2.LoadSample.ModelLoad] = []
    async with asyncio.timeout(TIMEOUT_S):
        async for response in call:
            seen += response.load.models
            if all(stream.terminal for stream in streams) and not (seen[-1].running or seen[-1].waiting):
                break
    call.cancel()
    assert max(load.running for load in seen) == slots
    assert max(load.waiting for load in seen) >= 2
    assert max(load.queued_prefill_tokens for load in seen) > 0
    assert max(load.kv_blocks_used for load in seen) >= slots
    assert max(load.context_tokens for load in seen) > slots * 10
    steps = [step for load in seen for step in zip(load.step_us, load.step_batch, strict=True)]
    assert steps
    assert all(duration > 0 for duration, _ in steps)
    assert max(batch for _, batch in steps) > 1
    assert (seen[-1].kv_blocks_used, seen[-1].queued_prefill_tokens, seen[-1].context_tokens) == (0, 0, 0)


@pytest.mark.timeout(300)
async def test_cache_events_say_what_is_cached(worker: WorkerProcess, gateway: Gateway, words: Words) -> None:
    """The reference is the engine itself: what it says it took from its cache when a prompt comes again."""
    if "cache_events" not in await features(worker):
        pytest.skip("this engine tells nothing of its cache")
    prompts = [words.chat(f"{one}, " + ", ".join(f"{one}{i}" for i in range(80))) for one in range(8)]
    chains = [block_hashes(prompt, 16) for prompt in prompts]
    for prompt, hashes in zip(prompts, chains, strict=True):
        assert len(prompt) > 256
        await gateway.complete(prompt, 2, sampling=FULL, block_hashes=hashes)
    taken = []
    latest = chains[-1]  # what was used last is there, whatever had to go for it
    for prompt, hashes in reversed(list(zip(prompts, chains, strict=True))):
        cached = 16 * depth(hashes, await cached_blocks(worker, latest[:-2]))
        latest = hashes
        again = await gateway.complete(prompt, 1, sampling=FULL, block_hashes=hashes)
        assert again.terminal is not None
        taken.append(again.terminal.cached_tokens)
        assert cached - BLOCK <= taken[-1] <= cached, (cached, taken)
    assert taken[0] >= len(prompts[-1]) - 2 * BLOCK
    room = 16 * (await described(worker)).kv_blocks_total
    assert (taken[-1] < BLOCK) == (sum(map(len, prompts)) > room), "the least recently used goes first"


async def test_a_resumed_answer_goes_on_where_it_broke_off(gateway: Gateway, words: Words) -> None:
    prompt = words.chat("What is the capital of Italy?")
    whole = await gateway.complete(prompt, 7, sampling=FULL)
    generated = whole.ids[:3]
    emitted = words.text(generated)
    resumed = await gateway.complete(
        prompt, 4, sampling=FULL, generated=generated, emitted_chars=len(emitted), attempt=2
    )
    assert generated + resumed.ids == whole.ids
    assert emitted + resumed.text == whole.text


async def test_a_seed_makes_sampling_reproducible(
    worker: WorkerProcess, gateway: Gateway, words: Words
) -> None:
    if "seed" not in await features(worker):
        pytest.skip("this engine has no seeds")
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 7}
    prompt = words.chat("Invent a name.")
    first = await gateway.complete(prompt, 8, sampling=sampling)
    second = await gateway.complete(prompt, 8, sampling=sampling)
    assert first.ids == second.ids


async def test_an_unloaded_engine_is_gone_and_can_come_back(worker: WorkerProcess, gateway: Gateway) -> None:
    process = psutil.Process(worker.process.pid)
    had = process.children(recursive=True)
    answer = await worker.unload()
    assert answer[-1].stage == worker_pb2.UnloadModelResponse.STAGE_UNLOADED
    assert not process.children(recursive=True)
    assert (answer[-1].freed_bytes > 50_000_000) == bool(had)
    refused = await gateway.complete([1], 2)
    assert refused.terminal is not None
    assert refused.terminal.failure.reason == common_pb2.REASON_NOT_RESIDENT
    assert (await worker.load(worker.entry))[-1].progress.stage == common_pb2.LoadProgress.STAGE_READY
    assert (await gateway.complete([1], 1, sampling=FULL)).ids
