"""The parts of the vLLM engine that need no vLLM."""

from typing import Any

import pynvml
import pytest

from tests.unit.worker.fakes import VOCABULARY
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.arguments import parse_arguments
from tokenfleet.worker.engines.base import Generation, ModelFiles, SleepCosts
from tokenfleet.worker.engines.vllm.arguments import VllmArguments
from tokenfleet.worker.engines.vllm.child import classify, complete, device_memory, tried_sleep
from tokenfleet.worker.engines.vllm.engine import VllmHost
from tokenfleet.worker.engines.vllm.request import sampling_of


def asked(
    prompt: int = 4, generated: tuple[int, ...] = (), budget: int = 50, **sampling: Any
) -> dict[str, Any]:
    ids = [*range(100, 100 + prompt), *generated]
    told = sampling_of(Generation(1, ids, prompt, budget, common_pb2.SamplingParams(**sampling)))
    return {**told["sampling"], **{name: value for name, value in told.items() if name != "sampling"}}


def test_what_the_caller_leaves_out_is_left_to_vllm_s_neutral_defaults() -> None:
    assert asked() == {"ignore_eos": False, "min_tokens": 0}
    assert asked(temperature=0.0, top_k=0)["temperature"] == 0.0


def test_minimum_and_seed_count_from_the_first_generated_token() -> None:
    assert asked(generated=(5, 6), min_tokens=10)["min_tokens"] == 8
    assert asked(generated=(5, 6), min_tokens=1)["min_tokens"] == 0
    assert asked(budget=3, min_tokens=10)["min_tokens"] == 3
    seeds = {asked(generated=tuple(range(n)), seed=7)["seed"] for n in range(5)}
    assert len(seeds) == 5


def test_penalties_on_earlier_output_become_a_bias() -> None:
    told = asked(generated=(5, 6, 5), presence_penalty=0.5, frequency_penalty=0.25, logit_bias={6: 1.0})
    assert dict(told["logit_bias"]) == {6: 1.0 - 0.75, 5: -1.0}
    assert (told["presence_penalty"], told["frequency_penalty"]) == (0.5, 0.25)
    assert "logit_bias" not in asked(presence_penalty=0.5)


@pytest.mark.parametrize(
    ("generated", "schema", "reason"),
    [
        ((), "{", common_pb2.REASON_INVALID_ARGUMENT),
        ((5,), "{}", common_pb2.REASON_RESUME_IMPOSSIBLE),
    ],
)
def test_a_schema_is_checked(generated: tuple[int, ...], schema: str, reason: int) -> None:
    with pytest.raises(FleetError) as caught:
        asked(generated=generated, json_schema=schema)
    assert (caught.value.reason, caught.value.field) == (reason, "json_schema")


def test_arguments_are_vllm_s_own_and_the_rest_is_passed_through() -> None:
    arguments = parse_arguments(
        "vllm", VllmArguments, {"tensor_parallel_size": 2, "n_threads": 3, "extra": {"swap_space": 1}}
    )
    told = arguments.engine_args()
    assert (told["tensor_parallel_size"], told["swap_space"]) == (2, 1)
    assert not {"n_threads", "extra", "max_model_len", "gpu_memory_utilization"} & set(told)
    with pytest.raises(FleetError, match="did you mean max_model_len"):
        parse_arguments("vllm", VllmArguments, {"max_model_length": 5})


def test_what_is_switched_off_is_told_and_what_is_left_at_nothing_is_not() -> None:
    off = {"enable_prefix_caching": False, "enforce_eager": False, "block_size": 0}
    told = parse_arguments("vllm", VllmArguments, off).engine_args()
    assert (told["enable_prefix_caching"], told["enforce_eager"]) == (False, False)
    assert "block_size" not in told


def config(block_size: int = 16, kv_bytes: int = 0, **arguments: Any) -> dict[str, Any]:
    return {"model": "/m", "block_size": block_size, "kv_bytes": kv_bytes, "arguments": arguments}


def test_blocks_are_the_entry_s_or_the_next_that_the_device_can_do() -> None:
    assert complete(config(), on_cpu=False)["block_size"] == 16
    assert complete(config(), on_cpu=True)["block_size"] == 32
    assert complete(config(block_size=128), on_cpu=True)["block_size"] == 128
    with pytest.raises(ValueError, match="no multiple of the entry's 16"):
        complete({**config(), "arguments": {"block_size": 24}}, on_cpu=False)


def test_memory_for_the_cache_is_said_by_whoever_says_it_most_exactly() -> None:
    assert complete(config(kv_bytes=5), on_cpu=True)["kv_cache_memory_bytes"] == 5
    assert complete(config(kv_bytes=5, kv_cache_memory_bytes=7), on_cpu=False)["kv_cache_memory_bytes"] == 7
    assert "kv_cache_memory_bytes" not in complete(
        config(kv_bytes=5, gpu_memory_utilization=0.5), on_cpu=False
    )
    assert "kv_cache_memory_bytes" not in complete(config(), on_cpu=False)
    assert complete(config(), on_cpu=True)["kv_cache_memory_bytes"] == 1 << 30


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        ValueError("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),
        MemoryError(),
    ],
)
def test_lack_of_memory_has_many_names(error: Exception) -> None:
    assert classify(error) == "OUT_OF_MEMORY"
    assert classify(RuntimeError("illegal memory access")) is None


def ready(**more: Any) -> dict[str, Any]:
    told = {"vocabulary": 100, "version": "0", "quantization": "", "dtype": "bfloat16", "max_num_seqs": 4}
    return {**told, "max_model_len": 512, "kv_tokens": 2048, **more}


def test_on_devices_it_occupies_their_memory_and_says_what_its_sleep_costs() -> None:
    files = ModelFiles("m", 512, 16, {}, 0, "", None, VOCABULARY)
    host = VllmHost(files, parse_arguments("vllm", VllmArguments, {}), 1)
    on_cpu = host.facts(ready(), memory_bytes=70)
    assert (on_cpu.memory_bytes, on_cpu.sleep) == (70, None)
    costs = {"asleep_bytes": 9, "wake_s": 0.5}
    on_gpu = host.facts(ready(device_memory_bytes=800, sleep=costs), memory_bytes=70)
    assert (on_gpu.memory_bytes, on_gpu.sleep) == (800, SleepCosts(9, 0.5))


def test_sleep_is_tried_and_what_was_there_before_the_engine_is_not_its() -> None:
    used = [800]

    class Core:
        def sleep(self) -> None:
            used[0] = 190

        def wake_up(self) -> None:
            used[0] = 800

    costs = tried_sleep(Core(), lambda: used[0], before=100)
    assert costs["asleep_bytes"] == 90
    assert 0 <= costs["wake_s"] < 10
    assert used == [800], "it has to be awake again"


def test_where_no_driver_tells_of_devices_their_memory_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    monkeypatch.setattr(pynvml, "nvmlInit", init)
    assert device_memory() is None
