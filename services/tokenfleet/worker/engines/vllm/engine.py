"""The vLLM engine: what its child is told, and what becomes of what the child says."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, ClassVar

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.arguments import parse_arguments
from tokenfleet.worker.engines.base import EngineFacts, Generation, ModelFiles, SleepCosts
from tokenfleet.worker.engines.hosted.sleeping import SleepingHostedEngine
from tokenfleet.worker.engines.vllm.arguments import VllmArguments
from tokenfleet.worker.engines.vllm.request import sampling_of

# Of its KV reservation an engine that ran out of memory is given so much again.
_KEPT_AFTER_OOM = 0.75
_SMALLEST_FRACTION = 0.1

log = get_logger(__name__)


class VllmHost:
    """One model on vLLM."""

    name: ClassVar[str] = "vllm"
    module: ClassVar[str] = "tokenfleet.worker.engines.vllm.child"

    def __init__(self, model: ModelFiles, arguments: VllmArguments, threads: int) -> None:
        self._model = model
        self._arguments = arguments
        self._threads = arguments.n_threads or threads
        self._reserved: dict[str, Any] = {}  # what it takes for the KV cache after memory ran short
        self._ready: Mapping[str, Any] = {}
        self.start_timeout_s = arguments.start_timeout_s
        self.stall_timeout_s = arguments.stall_timeout_s

    def config(self) -> dict[str, Any]:
        given = self._arguments.engine_args()
        given.setdefault("max_model_len", self._model.context_length)
        return {
            "model": str(self._model.weights),
            "block_size": self._model.block_size,
            "kv_bytes": self._model.kv_bytes,
            "arguments": {**given, **self._reserved},
        }

    def environment(self) -> Mapping[str, str]:
        return {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # on CPUs vLLM would bind itself to cores of its own choice, and so would its neighbour
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(self._threads),
        }

    def facts(self, ready: Mapping[str, Any], memory_bytes: int) -> EngineFacts:
        self._ready = ready
        self._model.check_vocabulary("vllm", ready["vocabulary"])
        return EngineFacts(
            fingerprint=common_pb2.Fingerprint(
                engine="vllm",
                engine_version=ready["version"],
                weights_digest=self._model.weights_digest,
                dtype=ready["quantization"] or ready["dtype"],
            ),
            max_sequences=ready["max_num_seqs"],
            context_length=min(self._model.context_length, ready["max_model_len"], ready["kv_tokens"]),
            kv_blocks_total=ready["kv_tokens"] // self._model.block_size,
            memory_bytes=ready.get("device_memory_bytes") or memory_bytes,
            vocabulary_size=ready["vocabulary"],
            sleep=SleepCosts(**ready["sleep"]) if "sleep" in ready else None,
        )

    def request(self, generation: Generation) -> dict[str, Any]:
        return sampling_of(generation)

    def shrink(self) -> bool:
        reserved = self._reserved or {
            name: self._ready.get(ready)
            for name, ready in (
                ("kv_cache_memory_bytes", "kv_bytes"),
                ("gpu_memory_utilization", "gpu_memory_utilization"),
            )
        }
        if reserved.get("kv_cache_memory_bytes"):
            self._reserved = {
                "kv_cache_memory_bytes": int(reserved["kv_cache_memory_bytes"] * _KEPT_AFTER_OOM)
            }
        elif (reserved.get("gpu_memory_utilization") or 0) > _SMALLEST_FRACTION:
            self._reserved = {"gpu_memory_utilization": reserved["gpu_memory_utilization"] * _KEPT_AFTER_OOM}
        else:
            return False
        log.warning(
            "memory was short: the next start reserves less", model=self._model.name, **self._reserved
        )
        return True


class VllmEngine(SleepingHostedEngine):
    needs_folder: ClassVar[bool] = True
    features: ClassVar[frozenset[str]] = frozenset(
        {"cache_events", "json_schema", "logprobs", "min_tokens", "seed"}
    )

    def host(self, model: ModelFiles) -> VllmHost:
        if find_spec("vllm") is None:
            raise FleetError(
                common_pb2.REASON_LOAD_FAILED,
                "engine vllm is not installed here: run this worker where vLLM is, on an image of its "
                "vendor or in the environment that `make setup-engines` makes for CPUs",
            )
        return VllmHost(model, parse_arguments("vllm", VllmArguments, model.arguments), self._threads)
