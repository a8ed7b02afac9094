"""The parts of the remote engine that need no server."""

from collections.abc import Sequence
from typing import Any

import pytest
from smg_grpc_proto import trtllm_service_pb2, vllm_engine_pb2
from smg_grpc_proto.generated import common_pb2 as smg

from tokenfleet.core.blocks import block_hashes
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import EngineLoad, Generation
from tokenfleet.worker.engines.remote.arguments import RemoteArguments
from tokenfleet.worker.engines.remote.cache_feed import CacheFeed, CacheGap
from tokenfleet.worker.engines.remote.dialects.base import Dialect, Piece, ServerLoad
from tokenfleet.worker.engines.remote.dialects.trtllm import TrtllmDialect
from tokenfleet.worker.engines.remote.dialects.vllm import VllmDialect
from tokenfleet.worker.engines.remote.load import LoadBook
from tokenfleet.worker.engines.remote.sequence import RemoteSequence
from tokenfleet.worker.engines.remote.server import Server

DIALECTS = [VllmDialect(), TrtllmDialect()]
END = frozenset({2})
IDS = list(range(64))


def generation(prompt: int = 10, generated: int = 0, key: int = 1, **sampling: Any) -> Generation:
    ids = list(range(prompt + generated))
    return Generation(key, ids, prompt, 50, common_pb2.SamplingParams(**sampling))


def sequence(prompt: int = 10, key: int = 1) -> RemoteSequence:
    return RemoteSequence(generation(prompt, key=key), f"r-{key}", 0.0)


# Requests


def test_what_the_caller_leaves_out_is_neutral_for_vllm() -> None:
    params = VllmDialect().request(generation(), "r").sampling_params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)
    assert params.repetition_penalty == 1.0
    assert not params.HasField("seed")
    assert not params.HasField("logprobs")


def test_what_the_caller_leaves_out_is_neutral_for_trtllm() -> None:
    config = TrtllmDialect().request(generation(), "r").sampling_config
    assert (config.temperature, config.top_p, config.repetition_penalty) == (1.0, 1.0, 1.0)
    assert not config.HasField("top_k")
    assert not config.HasField("seed")


def test_greedy_is_said_so_that_each_server_understands() -> None:
    params = VllmDialect().request(generation(temperature=0.0), "r").sampling_params
    assert params.HasField("temperature")
    assert params.temperature == 0.0
    config = TrtllmDialect().request(generation(temperature=0.0), "r").sampling_config
    assert (config.top_k, config.HasField("temperature")) == (1, False)


def test_nothing_is_left_to_the_server_that_is_the_workers() -> None:
    asked = generation(stop=["x"], stop_token_ids=[7])
    vllm = VllmDialect().request(asked, "r")
    assert not vllm.sampling_params.stop
    assert not vllm.sampling_params.stop_token_ids
    trtllm = TrtllmDialect().request(asked, "r")
    assert not trtllm.stop
    assert not trtllm.stop_token_ids


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda one: one.engine)
def test_ids_behind_the_prompt_are_output_already(dialect: Dialect) -> None:
    def asked(generated: int) -> Any:
        request = dialect.request(generation(generated=generated, min_tokens=8, seed=42), "r")
        return request.sampling_params if dialect.engine == "vllm" else request.sampling_config

    assert [asked(generated).min_tokens for generated in (0, 5, 9)] == [8, 3, 0]
    assert len({asked(generated).seed for generated in range(20)}) == 20


def test_penalties_on_earlier_output_go_on_behind_a_break() -> None:
    asked = generation(generated=2, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={11: 2.0})
    params = VllmDialect().request(asked, "r").sampling_params
    assert dict(params.logit_bias) == {10: -0.75, 11: 1.25}


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda one: one.engine)
def test_a_grammar_is_not_resumed_and_has_to_be_json(dialect: Dialect) -> None:
    with pytest.raises(FleetError, match="grammar's state") as error:
        dialect.request(generation(generated=3, json_schema="{}"), "r")
    assert error.value.reason == common_pb2.REASON_RESUME_IMPOSSIBLE
    with pytest.raises(FleetError, match="no JSON") as error:
        dialect.request(generation(json_schema="{"), "r")
    assert error.value.reason == common_pb2.REASON_INVALID_ARGUMENT


def test_what_a_service_cannot_carry_is_refused() -> None:
    with pytest.raises(FleetError, match="logit_bias") as error:
        TrtllmDialect().request(generation(logit_bias={7: 1.0}), "r")
    assert error.value.reason == common_pb2.REASON_UNSUPPORTED
    assert dict(VllmDialect().request(generation(logit_bias={7: 1.0}), "r").sampling_params.logit_bias) == {
        7: 1.0
    }


def test_seeds_fit_into_what_the_service_has_for_them() -> None:
    for seed in (0, 1, 2**63, 2**64 - 1):
        assert VllmDialect().request(generation(seed=seed), "r").sampling_params.seed >= 0
        assert TrtllmDialect().request(generation(seed=seed), "r").sampling_config.seed >= 0


# Answers


def test_vllm_repeats_the_last_chunk_which_is_not_delivered_twice() -> None:
    dialect, one = VllmDialect(), sequence()
    pb = vllm_engine_pb2
    chunk = pb.GenerateResponse(chunk=pb.GenerateStreamChunk(token_ids=[5, 6], cached_tokens=3))
    last = pb.GenerateResponse(complete=pb.GenerateComplete(output_ids=[5, 6], finish_reason="length"))
    assert one.take(dialect.read(chunk), END) == [5, 6]
    assert one.take(dialect.read(last), END) == []
    assert one.ended(dialect.read(last).finish).reason == common_pb2.FINISH_REASON_LENGTH


def test_trtllms_whole_answer_makes_up_for_chunks_that_did_not_come() -> None:
    dialect, one = TrtllmDialect(), sequence()
    pb = trtllm_service_pb2
    chunk = pb.GenerateResponse(chunk=pb.GenerateStreamChunk(token_ids=[5]))
    last = pb.GenerateResponse(
        complete=pb.GenerateComplete(output_token_ids=[5, 6, 7], finish_reason="length")
    )
    assert one.take(dialect.read(chunk), END) == [5]
    assert one.take(dialect.read(last), END) == [6, 7]


@pytest.mark.parametrize(
    ("pieces", "delivered"),
    [
        ([Piece([5, 2]), Piece((), "stop")], [[5], []]),  # ended by itself
        ([Piece([5, 2]), Piece([6]), Piece((), "stop")], [[5], [2, 6], []]),  # it went on behind it
        ([Piece([5, 2]), Piece((), "length")], [[5], [2]]),  # cut off just there
        ([Piece([5]), Piece([2]), Piece([2]), Piece((), "length")], [[5], [], [2], [2]]),
        ([Piece([5], "stop")], [[5]]),
        ([Piece([5, 2], "stop")], [[5]]),
        ([Piece([5]), Piece((), "stop", 0, (), [5, 2])], [[5], []]),
    ],
)
def test_an_end_token_is_delivered_only_when_the_answer_goes_on(
    pieces: list[Piece], delivered: list[list[int]]
) -> None:
    one = sequence()
    assert [one.take(piece, END) for piece in pieces] == delivered


@pytest.mark.parametrize("word", ["abort", "error", "", "cancelled"])
def test_an_ending_that_is_none_is_a_failure(word: str) -> None:
    record = sequence().ended(word)
    assert record.reason == common_pb2.FINISH_REASON_FAILED
    assert record.failure is not None
    assert record.failure.reason == common_pb2.REASON_ENGINE_FAILED


# Load


def test_the_own_books_are_exact_and_the_server_knows_of_others() -> None:
    book = LoadBook(block_size=16, kv_blocks_total=100, max_sequences=8)
    one, two = sequence(32, key=1), sequence(16, key=2)
    one.first_token_at = 1.0
    one.received = 8
    assert book.now([]) == EngineLoad()
    assert book.now([one, two]) == EngineLoad(
        running=2, waiting=0, kv_blocks_used=4, queued_prefill_tokens=16, context_tokens=56
    )
    book.server_said(ServerLoad(running=3, waiting=1, kv_usage=0.5), own=2)
    assert book.now([one, two]) == EngineLoad(
        running=3, waiting=1, kv_blocks_used=50, queued_prefill_tokens=16, context_tokens=40
    )
    book.idle()
    assert book.now([]) == EngineLoad()


def test_more_sequences_than_the_server_runs_at_once_have_to_wait() -> None:
    book = LoadBook(block_size=16, kv_blocks_total=100, max_sequences=2)
    many = [sequence(20, key=key) for key in range(5)]
    assert (book.now(many).running, book.now(many).waiting) == (2, 3)
    for one in many:
        one.first_token_at = 1.0
    assert (book.now(many).running, book.now(many).waiting) == (5, 0), "it runs more than it said"


# Cache events


class Index:
    def __init__(self) -> None:
        self.hashes: set[int] = set()

    def cache_stored(self, hashes: Sequence[int], parent: int) -> None:
        self.hashes |= set(hashes)

    def cache_removed(self, hashes: Sequence[int]) -> None:
        self.hashes -= set(hashes)


@pytest.fixture
async def feed() -> tuple[CacheFeed, Index]:
    index = Index()
    server = Server(RemoteArguments.model_validate({"address": "127.0.0.1:1"}), "vllm.grpc.engine.VllmEngine")
    return CacheFeed(server, 16, index, flush=True), index


def batch(number: int, *events: smg.KvCacheEvent, **fields: Any) -> smg.KvEventBatch:
    return smg.KvEventBatch(sequence_number=number, events=events, **fields)


def stored(name: int, ids: Sequence[int], parent: int | None = None, **fields: Any) -> smg.KvCacheEvent:
    block = smg.KvBlock(block_hash=name, token_ids=ids, block_size=len(ids))
    return smg.KvCacheEvent(stored=smg.KvBlocksStored(blocks=[block], parent_block_hash=parent, **fields))


async def test_each_rank_counts_for_itself(feed: tuple[CacheFeed, Index]) -> None:
    following, index = feed
    following.take(batch(7, stored(1, IDS[:16]), dp_rank=0))
    following.take(batch(900, stored(2, IDS[16:32], 1), dp_rank=1))
    following.take(batch(8, stored(3, IDS[32:48], 2), dp_rank=0))
    assert index.hashes == set(block_hashes(IDS[:48], 16))
    with pytest.raises(CacheGap, match="batches 901 to 902 of rank 1"):
        following.take(batch(903, dp_rank=1))


async def test_records_of_load_alone_are_no_events(feed: tuple[CacheFeed, Index]) -> None:
    following, _ = feed
    following.take(batch(0, stored(1, IDS[:16])))
    following.take(batch(0, load=smg.EngineLoad(load_only=True)))
    following.take(batch(1, load=smg.EngineLoad(running_requests=3)))
    following.take(batch(2))


async def test_a_snapshot_replaces_what_was_known(feed: tuple[CacheFeed, Index]) -> None:
    following, index = feed
    following.take(batch(50, stored(1, IDS[:16])))
    cleared = smg.KvCacheEvent(cleared=smg.KvCacheCleared())
    first = smg.KvSnapshotChunk(index=0, count=2)
    following.take(batch(20, cleared, stored(5, IDS[16:32]), snapshot=first))
    following.take(batch(21, stored(6, IDS[32:48], 5), snapshot=smg.KvSnapshotChunk(index=1, count=2)))
    following.take(batch(22))
    assert index.hashes == set(block_hashes(IDS[16:48], 16))


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_name": "adapter"},
        {"cache_salt": "tenant"},
        {"tier": smg.KV_CACHE_TIER_DISK},
        {"locality": smg.KV_CACHE_LOCALITY_REMOTE},
    ],
)
async def test_blocks_that_ids_do_not_name_or_that_lie_elsewhere_are_left_out(
    feed: tuple[CacheFeed, Index], fields: dict[str, Any]
) -> None:
    following, index = feed
    following.take(batch(0, stored(1, IDS[:16], **fields)))
    assert index.hashes == set()
