"""The real process on a free port, a loader that gives it a catalog, and a gateway's calls over the wire."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests import tiny_model
from tests.contract.tokenizer_process import (
    Gateway,
    Loader,
    TokenizerProcess,
    gateway,
    serving_loader,
    tokenizer_process,
)
from tokenfleet.core.blocks import block_hashes
from tokenfleet.runtime.errors import FleetError, from_rpc_error
from tokenfleet.runtime.grpc_host import open_channel
from tokenfleet.runtime.roles import TOKENIZER
from tokenfleet.v1 import common_pb2, tokenizer_pb2, tokenizer_pb2_grpc

VOCABULARY = {token: index for index, token in enumerate(tiny_model.tokens())}


def spec(folder: Path, name: str = "tiny", *, warm: bool = True, **fields: str) -> common_pb2.ModelSpec:
    policy = common_pb2.ModelSpec.POLICY_WARM if warm else common_pb2.ModelSpec.POLICY_LAZY
    built = common_pb2.ModelSpec(name=name, context_length=512, block_size=4, policy=policy)
    built.source = f"file://{folder}/model.gguf"
    for field, value in fields.items():
        setattr(built, field, value)
    return built


def chat(*messages: tuple[str, str], model: str = "tiny") -> tokenizer_pb2.EncodeJob:
    job = tokenizer_pb2.EncodeJob(model=model)
    for role, content in messages:
        job.chat.messages.add(role=role, content=content)
    job.chat.add_generation_prompt = True
    return job


def text(content: str, model: str = "tiny") -> tokenizer_pb2.EncodeJob:
    return tokenizer_pb2.EncodeJob(model=model, text=content)


def reason(result: tokenizer_pb2.EncodeResult) -> tuple[str, str]:
    return common_pb2.Reason.Name(result.failure.reason), result.failure.field


# `assistant` and the line's end, which open the answer, stand behind the last special token.
OPENING_TOKENS = len("assistant\n")


@dataclass
class Fleet:
    loader: Loader
    process: TokenizerProcess
    folder: Path

    async def decode(self, ids: list[int], *, skip: bool = False, model: str = "tiny") -> str:
        request = tokenizer_pb2.DecodeRequest(model=model, token_ids=ids, skip_special_tokens=skip)
        async with self.calls() as stub:
            return (await stub.Decode(request)).text

    async def describe(self, model: str) -> tokenizer_pb2.DescribeModelResponse:
        async with self.calls() as stub:
            return await stub.DescribeModel(tokenizer_pb2.DescribeModelRequest(model=model))

    @asynccontextmanager
    async def calls(self) -> AsyncIterator[tokenizer_pb2_grpc.TokenizerAsyncStub]:
        """Unary calls; their errors come as FleetErrors."""
        async with open_channel(self.process.address, TOKENIZER) as channel:
            try:
                yield tokenizer_pb2_grpc.TokenizerStub(channel)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error


@asynccontextmanager
async def fleet(folder: Path, *flags: str) -> AsyncIterator[Fleet]:
    tiny_model.write_gguf(folder / "model.gguf")
    models = [spec(folder), spec(folder, "lazy", warm=False), spec(folder, "polite", system_prompt="hello")]
    async with AsyncExitStack() as stack:
        loader, address = await stack.enter_async_context(serving_loader(models))
        flags = ("--cache-dir", str(folder / "cache"), *flags)
        process = await stack.enter_async_context(tokenizer_process(address, *flags))
        await process.ready()
        yield Fleet(loader, process, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module", params=["frames", "grpc"])
def frames(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "frames")


@pytest.fixture
async def running(folder: Path) -> AsyncIterator[Fleet]:
    async with fleet(folder) as running:
        yield running


async def test_prompts_become_ids_and_hashes(folder: Path, frames: bool) -> None:
    async with fleet(folder) as running, gateway(running.process.address, frames=frames) as link:
        await _text_and_chat(link)
        await _ids_and_counts(link)
        await _errors_are_typed_and_name_the_field(link)
        await _a_large_lot_is_answered_whole(link)


async def _text_and_chat(link: Gateway) -> None:
    plain, conversation, polite = await link.encode(
        text("hello world"), chat(("user", "hello")), chat(("user", "hello"), model="polite")
    )
    assert list(plain.token_ids) == [VOCABULARY["hello"], VOCABULARY["Ġworld"]]
    start, end = VOCABULARY["<|im_start|>"], VOCABULARY["<|im_end|>"]
    ids = list(conversation.token_ids)
    assert ids.count(start) == 2, "the user's turn and the answer's; no system message"
    assert [ids[0], ids.count(end), ids.count(VOCABULARY["hello"])] == [start, 1, 1]
    assert list(conversation.block_hashes) == block_hashes(ids, 4)
    assert list(polite.token_ids).count(start) == 3, "the catalog's system prompt comes first"


async def _ids_and_counts(link: Gateway) -> None:
    ids = tokenizer_pb2.TokenInput(token_ids=[5, 6, 7, 8, 9])
    given, counted = await link.encode(
        tokenizer_pb2.EncodeJob(model="tiny", tokens=ids, cache_salt="a"),
        tokenizer_pb2.EncodeJob(model="tiny", text="hello world", count_only=True),
    )
    assert given.token_ids == ids.token_ids
    assert list(given.block_hashes) == block_hashes(ids.token_ids, 4, "a")
    assert (counted.token_count, len(counted.token_ids)) == (2, 0)


async def _errors_are_typed_and_name_the_field(link: Gateway) -> None:
    wrong_json = chat(("user", "hi"))
    wrong_json.chat.messages[0].raw_json = "{"
    wrong_kwargs = chat(("user", "hi"))
    wrong_kwargs.chat.template_kwargs_json = "[]"
    wrong_tools = chat(("user", "hi"))
    wrong_tools.chat.tools_json = "3"
    ids = tokenizer_pb2.TokenInput(token_ids=[1, 4_000_000_000])
    results = await link.encode(
        text("hi", model="nothing"),
        chat(),
        chat(("robot", "hi")),
        wrong_json,
        wrong_kwargs,
        wrong_tools,
        tokenizer_pb2.EncodeJob(model="tiny", tokens=ids),
        tokenizer_pb2.EncodeJob(model="tiny"),
        text("hello"),
    )
    assert [reason(result) for result in results[:-1]] == [
        ("REASON_MODEL_NOT_FOUND", "model"),
        ("REASON_INVALID_ARGUMENT", "messages"),
        ("REASON_INVALID_ARGUMENT", "messages[0].role"),
        ("REASON_INVALID_ARGUMENT", "messages[0]"),
        ("REASON_INVALID_ARGUMENT", "chat_template_kwargs"),
        ("REASON_INVALID_ARGUMENT", "tools"),
        ("REASON_INVALID_ARGUMENT", "token_ids[1]"),
        ("REASON_INVALID_ARGUMENT", "input"),
    ]
    assert list(results[-1].token_ids) == [VOCABULARY["hello"]]


async def _a_large_lot_is_answered_whole(link: Gateway) -> None:
    """More than is encoded inline: through the thread, in few messages."""
    jobs = [text(f"hello {number} " * 50) for number in range(100)]
    before = link.responses
    results = await link.encode(*jobs)
    assert [result.token_count for result in results] == [len(result.token_ids) for result in results]
    assert len({bytes(result.SerializeToString()) for result in results}) == 100
    assert link.responses - before <= 10


async def test_ids_become_text(running: Fleet) -> None:
    ids = [1, VOCABULARY["hello"], VOCABULARY["Ġworld"], 2]
    assert await running.decode(ids) == "<|im_start|>hello world<|im_end|>"
    assert await running.decode(ids, skip=True) == "hello world"
    assert await running.decode([VOCABULARY["hello"]] * 5000) == "hello" * 5000
    with pytest.raises(FleetError, match="not in the vocabulary") as caught:
        await running.decode([1, 400_000])
    assert caught.value.field == "token_ids[1]"
    with pytest.raises(FleetError, match="does not exist") as caught:
        await running.decode([1], model="nothing")
    assert caught.value.reason == common_pb2.REASON_MODEL_NOT_FOUND


async def test_a_model_describes_itself_and_loads_when_asked_for(running: Fleet) -> None:
    assert "lazy" not in {record["model"] for record in await running.process.logged("tokenizer loaded")}
    described = await running.describe("lazy")
    assert described.vocabulary_size == len(VOCABULARY)
    assert (described.context_length, described.block_size) == (512, 4)
    assert (list(described.eos_token_ids), described.bos_token_id) == ([2, 0], 1)
    assert described.has_chat_template
    assert len(described.tokenizer_digest) == 64


async def test_the_catalog_may_change(running: Fleet) -> None:
    async with gateway(running.process.address, frames=True) as link:
        assert len((await link.one(text("hello" * 4))).block_hashes) == 1
        changed = spec(running.folder)
        changed.block_size = 2
        await running.loader.change([changed, spec(running.folder, "new", warm=False)])
        await running.process.logged("catalog", 2)
        assert len((await link.one(text("hello" * 4))).block_hashes) == 2
        assert (await link.one(text("hello", model="new"))).token_count == 1
        assert reason(await link.one(text("hello", model="polite")))[0] == "REASON_MODEL_NOT_FOUND"


async def test_a_model_that_cannot_be_had_fails_its_jobs_only(running: Fleet) -> None:
    missing = spec(running.folder, "missing", warm=False, source="file:///nowhere/model.gguf")
    bucket = spec(running.folder, "bucket", warm=False, source="s3://bucket/model")
    await running.loader.change([spec(running.folder), missing, bucket])
    await running.process.logged("catalog", 2)
    async with gateway(running.process.address, frames=True) as link:
        jobs = (text("hello", model="missing"), text("hello", model="bucket"), text("hello"))
        results = await link.encode(*jobs)
        reasons = [reason(result)[0] for result in results]
        assert reasons == ["REASON_LOAD_FAILED", "REASON_UNSUPPORTED", "REASON_UNSPECIFIED"]
        assert "/nowhere/model.gguf" in results[0].failure.message
        again = await link.one(text("hello", model="missing"))
        assert again.failure.retry_after_ms > 0


async def test_it_outlives_its_loader(folder: Path) -> None:
    tiny_model.write_gguf(folder / "model.gguf")
    async with AsyncExitStack() as stack:
        async with serving_loader([spec(folder)]) as (_, address):
            process = await stack.enter_async_context(
                tokenizer_process(address, "--cache-dir", str(folder / "cache"))
            )
            await process.ready()
        await process.logged("catalog watch broken")
        async with gateway(process.address, frames=True) as link:
            assert (await link.one(text("hello"))).token_count == 1


async def test_metrics_tell_what_it_did(running: Fleet) -> None:
    async with gateway(running.process.address, frames=True) as link:
        await link.encode(text("hello world"), chat(), text("hello " * 10_000))
        first, again = [await link.one(chat(("user", "hello"))) for _ in range(2)]
    assert (first.cached_tokens, again.cached_tokens) == (0, again.token_count - OPENING_TOKENS)
    (serving,) = await running.process.logged("serving")
    page = await asyncio.to_thread(_get, f"http://127.0.0.1:{serving['metrics']}/metrics")
    for line in (
        'tokenfleet_tokenizer_requests_total{outcome="ok"} 4.0',
        f'tokenfleet_tokenizer_prefix_cache_tokens_total{{result="hit"}} {again.cached_tokens}.0',
        'tokenfleet_tokenizer_requests_total{outcome="invalid_argument"} 1.0',
        'tokenfleet_tokenizer_batches_total{path="thread"} 1.0',
        "tokenfleet_tokenizer_batch_jobs_count 3.0",
        "tokenfleet_tokenizer_queue_depth 0.0",
    ):
        assert line in page
    assert "tokenfleet_tokenizer_encode_seconds_bucket" in page
    assert "tokenfleet_tokenizer_tokens_total" in page
    (size,) = [
        line for line in page.splitlines() if line.startswith("tokenfleet_tokenizer_prefix_cache_bytes ")
    ]
    assert float(size.split()[1]) > 0


def _get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as response:
        return str(response.read().decode())


async def test_it_stops_at_once_when_idle(folder: Path) -> None:
    async with fleet(folder) as running, gateway(running.process.address, frames=True):
        assert await running.process.stop() == 0
        log = json.dumps(running.process.log)
        assert "hello" not in log, "no prompt in the log"


@pytest.mark.parametrize("over", ["frames", "grpc"])
async def test_what_was_accepted_is_answered_before_it_stops(running: Fleet, over: str) -> None:
    async with gateway(running.process.address, frames=over == "frames") as link:
        jobs = [text(f"{number} hello world " * 300) for number in range(300)]
        encoding = asyncio.create_task(link.encode(*jobs))
        while not link.responses:
            await asyncio.sleep(0)
        assert not encoding.done(), "it is still at work"
        stopping = asyncio.create_task(running.process.stop())
        assert len(await encoding) == 300
        assert await stopping == 0


async def test_a_taken_port_is_named_with_a_remedy(running: Fleet) -> None:
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tokenfleet.tokenizer", "--listen", running.process.address),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await second.communicate()
    assert second.returncode == 1
    assert f"cannot listen on {running.process.address}" in errors.decode()
