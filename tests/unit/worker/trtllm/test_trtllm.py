"""The TensorRT-LLM engine on a TensorRT-LLM that has no names but those of `api.json`."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker.hosted import toy_engine
from tokenfleet.core.blocks import block_hashes
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import Vocabulary
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import EngineFacts, Generation, ModelFiles
from tokenfleet.worker.engines.trtllm.cache import CacheEvents
from tokenfleet.worker.engines.trtllm.engine import TrtllmEngine

ROOT = Path(__file__).resolve().parents[4]
TIMEOUT_S = 60.0
FAKE = Path(__file__).parent / "fake"
VOCABULARY = Vocabulary([b"", b"a", b"", *(f" w{i}".encode() for i in range(3, 5000))], frozenset({2}))
STOP, LENGTH = common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH
FAILED = common_pb2.FINISH_REASON_FAILED


class Heard(toy_engine.Heard):
    """Of the cache, too."""

    def __init__(self) -> None:
        super().__init__()
        self.cached: set[int] = set()

    async def until(self, what: Any) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not what():
                self.changed.clear()
                await self.changed.wait()

    def cache_stored(self, hashes: Sequence[int], parent: int) -> None:
        self.cached |= set(hashes)
        self.changed.set()

    def cache_removed(self, hashes: Sequence[int]) -> None:
        self.cached -= set(hashes)
        self.changed.set()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.setenv("PYTHONPATH", f"{FAKE}:{ROOT / 'services'}")


def model(**arguments: Any) -> ModelFiles:
    return ModelFiles("m", 4_096, 16, arguments, 0, "digest", Path("/models/m"), VOCABULARY)


@asynccontextmanager
async def loaded(**arguments: Any) -> AsyncIterator[tuple[TrtllmEngine, Heard, EngineFacts]]:
    engine, heard = TrtllmEngine(1), Heard()
    facts = await engine.load(model(**arguments), heard)
    try:
        yield engine, heard, facts
    finally:
        await engine.unload()


def generation(key: int, ids: Sequence[int], tokens: int = 8, **sampling: Any) -> Generation:
    return Generation(key, ids, len(ids), tokens, common_pb2.SamplingParams(**sampling))


@pytest.mark.usefixtures("installed")
async def test_what_it_says_of_itself() -> None:
    async with loaded(max_batch_size=32, max_seq_len=2_048) as (_, _, facts):
        assert (facts.fingerprint.engine, facts.fingerprint.weights_digest) == ("trtllm", "digest")
        assert (facts.max_sequences, facts.context_length) == (32, 2_048)
        assert facts.kv_blocks_total == 100 * 32 // 16


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("backend", ["pytorch", "tensorrt"])
async def test_sequences_run_side_by_side_and_end_as_they_should(backend: str) -> None:
    async with loaded(backend=backend) as (engine, heard, _):
        for key in range(1, 9):
            engine.submit(generation(key, [1, 100 * key], 20))
        engine.submit(generation(20, [1, 590], 30))
        engine.submit(generation(21, [1, 590], 30, ignore_eos=True))
        await heard.until(lambda: len(heard.finished) == 10)
        for key in range(1, 9):
            assert heard.ids[key] == list(range(100 * key + 1, 100 * key + 21))
            assert heard.finished[key].reason == LENGTH
        assert (heard.ids[20], heard.finished[20].reason) == (list(range(591, 600)), STOP)
        assert heard.ids[21] == list(range(591, 621))
        assert engine.steps.recorded > 10
        assert engine.load_now().running == 0


@pytest.mark.usefixtures("installed")
async def test_an_aborted_sequence_says_nothing_more_and_others_go_on() -> None:
    async with loaded() as (engine, heard, _):
        engine.submit(generation(1, [1, 100], 1_000, ignore_eos=True))
        engine.submit(generation(2, [1, 100], 60, ignore_eos=True))
        await heard.until(lambda: len(heard.ids.get(1, ())) > 3)
        assert engine.load_now().context_tokens > 4
        record = engine.abort(1)
        assert record is not None
        assert record.reason == common_pb2.FINISH_REASON_CANCELLED
        await heard.until(lambda: 2 in heard.finished)
        assert 1 not in heard.finished
        assert engine.abort(1) is None


@pytest.mark.usefixtures("installed")
async def test_what_it_refuses_or_breaks_off_is_one_requests_matter() -> None:
    async with loaded() as (engine, heard, _):
        engine.submit(generation(1, [13]))
        engine.submit(generation(2, [14, 100]))
        engine.submit(generation(3, [1, 100], 40))
        await heard.until(lambda: len(heard.finished) == 3)
        refused, broken = heard.finished[1].failure, heard.finished[2].failure
        assert refused is not None
        assert (refused.reason, "13 brings bad luck" in refused.message) == (
            common_pb2.REASON_INVALID_ARGUMENT,
            True,
        )
        assert broken is not None
        assert broken.reason == common_pb2.REASON_ENGINE_FAILED
        assert heard.finished[3].reason == LENGTH
        assert not heard.down


@pytest.mark.usefixtures("installed")
async def test_its_death_is_told_and_it_comes_back() -> None:
    async with loaded() as (engine, heard, _):
        engine.submit(generation(1, [15, 100], 100))
        await heard.until(lambda: heard.up)
        assert heard.finished[1].reason == FAILED
        engine.submit(generation(2, [1, 100], 5))
        await heard.until(lambda: 2 in heard.finished)
        assert heard.ids[2] == [101, 102, 103, 104, 105]


@pytest.mark.usefixtures("installed")
async def test_log_probabilities_and_grammars_are_passed_on() -> None:
    async with loaded() as (engine, heard, _):
        engine.submit(generation(1, [1, 97], 10, logprobs=2, json_schema="{}", seed=3, min_tokens=2))
        await heard.until(lambda: 1 in heard.finished)
        assert [record.token_id for _, record in heard.logprobs] == [98, 99]
        first = heard.logprobs[0][1]
        assert (first.text, first.logprob, len(first.top)) == (" w98", -0.5, 2)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"extra": {"no_such_thing": 1}}, "LLM got invalid argument: no_such_thing"),
        ({"extra": {"kv_cache_config": {"no_such_thing": 1}}}, "KvCacheConfig got invalid argument"),
        ({"tensor_paralel_size": 2}, "did you mean tensor_parallel_size?"),
        ({"kv_cache_config": {"free_gpu_memory_fraction": 2}}, "kv_cache_config.free_gpu_memory_fraction"),
    ],
)
async def test_wrong_arguments_are_named(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FleetError) as error:
        await TrtllmEngine(1).load(model(**arguments), Heard())
    assert complaint in error.value.message
    assert error.value.reason == common_pb2.REASON_LOAD_FAILED


@pytest.mark.usefixtures("installed")
async def test_a_lack_of_memory_is_called_so_and_the_next_start_takes_less() -> None:
    engine = TrtllmEngine(1)
    with pytest.raises(FleetError) as error:
        await engine.load(model(dtype="float32"), Heard())
    assert error.value.reason == common_pb2.REASON_OUT_OF_MEMORY
    host = engine.host(model(dtype="float32"))
    assert host.shrink()
    assert host.config()["arguments"]["kv_cache_config"]["free_gpu_memory_fraction"] == pytest.approx(0.675)
    while host.shrink():
        pass
    assert host.config()["arguments"]["kv_cache_config"]["free_gpu_memory_fraction"] >= 0.1


async def test_where_it_is_not_installed_the_message_says_where_it_is() -> None:
    with pytest.raises(FleetError, match="image worker-trtllm") as error:
        await TrtllmEngine(1).load(model(), Heard())
    assert error.value.reason == common_pb2.REASON_LOAD_FAILED


@pytest.mark.usefixtures("installed")
async def test_cached_prefixes_are_told_in_canonical_blocks() -> None:
    prompt = list(range(200, 299))
    async with loaded() as (engine, heard, _):
        engine.submit(generation(1, prompt))
        expected = set(block_hashes(prompt[:96], 16))
        await heard.until(lambda: heard.cached == expected)


@pytest.mark.usefixtures("installed")
def test_what_arrives_while_a_request_is_submitted_is_reported_with_the_next_step() -> None:
    from tensorrt_llm import LLM, KvCacheConfig

    from tokenfleet.worker.engines.trtllm.stepped import SteppedLlm

    cache = KvCacheConfig(enable_block_reuse=True, event_buffer_max_size=1)
    engine = SteppedLlm(LLM(model="m", kv_cache_config=cache), 16, frozenset({2}))
    told: list[int] = []
    for number in range(20):
        prompt = [1, 100] if number == 0 else [1, 300]
        sampling = {"top_k": 1, "ignore_eos": True}
        engine.submit({"key": number, "ids": prompt, "max_tokens": 1_000, "sampling": sampling})
        time.sleep(0.002)  # the first one's next token is due when the loop runs for the next submit
        if number % 5 == 0:
            told += [token for key, ids in engine.step().deltas if key == 0 for token in ids]
    told += [token for key, ids in engine.step().deltas if key == 0 for token in ids]
    assert told == list(range(101, 101 + len(told)))
    assert len(told) > 10
    engine.close()


def event(number: int, data: dict[str, Any], window: int = 4_096, **fields: Any) -> dict[str, Any]:
    return {"event_id": number, "data": data, "window_size": window, **fields}


def stored(name: int, ids: Sequence[int], parent: int | None = None, extra: int = 0) -> dict[str, Any]:
    tokens = [{"token_id": token, "token_extra_id": extra} for token in ids]
    return {"type": "stored", "parent_hash": parent, "blocks": [{"block_hash": name, "tokens": tokens}]}


IDS = list(range(64))
HASHES = block_hashes(IDS, 16)


@pytest.fixture
def cache() -> Heard:
    return Heard()


@pytest.fixture
def events(cache: Heard) -> CacheEvents:
    return CacheEvents(16, cache)


def test_missing_events_mean_that_nothing_is_known(events: CacheEvents, cache: Heard) -> None:
    events.take(event(0, stored(1, IDS[:32])))
    events.take(event(1, stored(2, IDS[32:], 1)))
    assert cache.cached == set(HASHES)
    events.take(event(7, stored(3, IDS[:16])))
    assert cache.cached == {HASHES[0]}
    events.take(event(8, {"type": "removed", "block_hashes": [3]}))
    assert cache.cached == set()


def test_ranks_count_for_themselves(events: CacheEvents, cache: Heard) -> None:
    events.take(event(3, stored(1, IDS[:16]), attention_dp_rank=0))
    events.take(event(70, stored(2, IDS[16:32], 1), attention_dp_rank=1))
    events.take(event(4, stored(3, IDS[32:48], 2), attention_dp_rank=0))
    assert cache.cached == set(HASHES[:3])


def test_the_widest_attention_window_is_what_counts(events: CacheEvents, cache: Heard) -> None:
    events.take(event(0, stored(9, IDS), window=128))
    events.take(event(1, stored(1, IDS[:32])))
    events.take(event(2, stored(8, IDS[32:], 9), window=128))
    events.take(event(3, {"type": "removed", "block_hashes": [1]}, window=128))
    assert cache.cached == set(HASHES[:2])


def test_blocks_that_ids_alone_do_not_name_are_left_out(events: CacheEvents, cache: Heard) -> None:
    events.take(event(0, stored(1, IDS[:32], extra=5)))
    assert cache.cached == set()
