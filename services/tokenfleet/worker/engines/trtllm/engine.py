"""The TensorRT-LLM engine: what its child is told, and what becomes of what the child says."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, ClassVar

from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.arguments import parse_arguments
from tokenfleet.worker.engines.base import EngineFacts, Generation, ModelFiles, load_failed
from tokenfleet.worker.engines.hosted.engine import HostedEngine
from tokenfleet.worker.engines.trtllm.arguments import TrtllmArguments
from tokenfleet.worker.engines.trtllm.request import request_of

# Of its KV reservation an engine that ran out of memory is given so much again.
_KEPT_AFTER_OOM = 0.75
_DEFAULT_FRACTION = 0.9
_SMALLEST_FRACTION = 0.1

log = get_logger(__name__)


class TrtllmHost:
    """One model on TensorRT-LLM."""

    name: ClassVar[str] = "trtllm"
    module: ClassVar[str] = "tokenfleet.worker.engines.trtllm.child"

    def __init__(self, model: ModelFiles, arguments: TrtllmArguments) -> None:
        self._model = model
        self._arguments = arguments
        self._llm_args = arguments.llm_args(model.context_length)
        if arguments.backend == "pytorch":
            self._llm_args["enable_iter_perf_stats"] = True  # engines that were built tell it unasked
        self.start_timeout_s = arguments.start_timeout_s
        self.stall_timeout_s = arguments.stall_timeout_s

    def config(self) -> dict[str, Any]:
        return {
            "model": str(self._arguments.engine_dir or self._model.weights),
            "backend": self._arguments.backend,
            "block_size": self._model.block_size,
            "end_ids": sorted(self._model.vocabulary.special_ids),
            "arguments": self._llm_args,
        }

    def environment(self) -> Mapping[str, str]:
        return {"HF_HUB_OFFLINE": "1"}

    def facts(self, ready: Mapping[str, Any], memory_bytes: int) -> EngineFacts:
        if told := ready["vocabulary"]:
            self._model.check_vocabulary("trtllm", told)
        given = self._llm_args
        return EngineFacts(
            fingerprint=common_pb2.Fingerprint(
                engine="trtllm",
                engine_version=ready["version"],
                weights_digest=self._model.weights_digest,
                dtype=given.get("dtype", "auto"),
            ),
            max_sequences=given["max_batch_size"],
            context_length=min(self._model.context_length, given["max_seq_len"]),
            kv_blocks_total=ready["kv_tokens"] // self._model.block_size,
            memory_bytes=memory_bytes,
            vocabulary_size=told,
        )

    def request(self, generation: Generation) -> dict[str, Any]:
        return request_of(generation)

    def shrink(self) -> bool:
        cache = self._llm_args["kv_cache_config"]
        fraction = cache.get("free_gpu_memory_fraction", _DEFAULT_FRACTION) * _KEPT_AFTER_OOM
        if fraction < _SMALLEST_FRACTION:
            return False
        cache["free_gpu_memory_fraction"] = fraction
        if "max_tokens" in cache:
            cache["max_tokens"] = max(self._model.context_length, int(cache["max_tokens"] * _KEPT_AFTER_OOM))
        log.warning("memory was short: the next start reserves less", model=self._model.name, **cache)
        return True


class TrtllmEngine(HostedEngine):
    needs_folder: ClassVar[bool] = True
    features: ClassVar[frozenset[str]] = frozenset(
        {"cache_events", "json_schema", "logprobs", "min_tokens", "seed"}
    )

    def host(self, model: ModelFiles) -> TrtllmHost:
        arguments = parse_arguments("trtllm", TrtllmArguments, model.arguments)
        if find_spec("tensorrt_llm") is None:
            raise load_failed(
                "engine trtllm is not installed here: run this worker on an image of its vendor, which has "
                "TensorRT-LLM (the image worker-trtllm does), or attach to its server with engine remote"
            )
        return TrtllmHost(model, arguments)
