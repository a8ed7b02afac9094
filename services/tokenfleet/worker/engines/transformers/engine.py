"""The transformers engine, on the worker's side."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.arguments import EngineArguments, parse_arguments
from tokenfleet.worker.engines.base import EngineFacts, Generation, ModelFiles, load_failed
from tokenfleet.worker.engines.hosted.engine import HostedEngine
from tokenfleet.worker.engines.resuming import resumed_seed

# KV tokens that a sequence has on average, when the entry does not say.
TOKENS_EACH = 1_024
# Of its KV tokens an engine that ran out of memory is given so many again.
_KEPT_AFTER_OOM = 0.75

_SCALARS: tuple[Any, ...] = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logprobs",
)


class TransformersArguments(EngineArguments):
    """What a catalog entry may say about this engine, in transformers' words where it has any."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: what the model's files say
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")  # auto: a GPU if there is one
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    model_kwargs: dict[str, Any] = Field(default_factory=dict)  # for `from_pretrained`, as they are
    # the micro-batcher
    window_ms: float = Field(30, ge=0, le=1_000)  # how long an idle engine waits for company
    max_batch: int = Field(8, ge=1, le=256)
    max_padding: float = Field(1.0, ge=0, le=1)  # of a prompt's row; less makes smaller batches
    # memory
    kv_tokens: int = Field(0, ge=0)  # of a batch, padding included; 0: one full context or 1,024 each
    prefix_cache_tokens: int = Field(4_096, ge=0)  # kept of prompts for later ones; 0: none
    prefill_chunk_tokens: int = Field(0, ge=0)  # of a step; 0: by the device
    threads: int = Field(0, ge=0)  # 0: the worker's share
    start_timeout_s: float = Field(600, gt=0)
    stall_timeout_s: float = Field(60, gt=0)  # no step for so long, with work to do: wedged


class TransformersEngine(HostedEngine):
    needs_folder: ClassVar[bool] = True
    features: ClassVar[frozenset[str]] = frozenset({"cache_events", "logprobs", "min_tokens", "seed"})

    def host(self, model: ModelFiles) -> TransformersHost:
        for package in ("torch", "transformers"):
            if find_spec(package) is None:
                raise load_failed(
                    f"engine transformers needs {package}, which is not installed here: install torch for "
                    "your accelerator, then pip install 'tokenfleet[worker-transformers]'"
                )
        return TransformersHost(model, self._threads)


class TransformersHost:
    """One model on this engine."""

    name: ClassVar[str] = "transformers"
    module: ClassVar[str] = "tokenfleet.worker.engines.transformers.child"

    def __init__(self, model: ModelFiles, threads: int) -> None:
        arguments = parse_arguments("transformers", TransformersArguments, model.arguments)
        self.start_timeout_s = arguments.start_timeout_s
        self.stall_timeout_s = arguments.stall_timeout_s
        self._arguments = arguments
        self._model = model
        self._threads = arguments.threads or threads
        self._kv_tokens = arguments.kv_tokens or max(model.context_length, arguments.max_batch * TOKENS_EACH)

    def config(self) -> dict[str, Any]:
        own = self._arguments.model_dump(exclude={"start_timeout_s", "stall_timeout_s"})
        return {
            **own,
            "model": str(self._model.weights),
            "block_size": self._model.block_size,
            "kv_tokens": self._kv_tokens,
            "threads": self._threads,
        }

    def environment(self) -> Mapping[str, str]:
        return {"OMP_NUM_THREADS": str(self._threads)}

    def facts(self, ready: Mapping[str, Any], memory_bytes: int) -> EngineFacts:
        model = self._model
        model.check_vocabulary("transformers", ready["vocabulary_size"])
        return EngineFacts(
            fingerprint=common_pb2.Fingerprint(
                engine="transformers",
                engine_version=ready["version"],
                weights_digest=model.weights_digest,
                dtype=ready["dtype"],
            ),
            max_sequences=self._arguments.max_batch,
            context_length=min(
                model.context_length, ready["context_length"] or model.context_length, self._kv_tokens
            ),
            kv_blocks_total=self._kv_tokens // model.block_size,
            memory_bytes=memory_bytes + ready["device_memory_bytes"],
            vocabulary_size=ready["vocabulary_size"],
        )

    def request(self, generation: Generation) -> dict[str, Any]:
        return {"sampling": sampling_of(generation), "block_hashes": list(generation.block_hashes)}

    def shrink(self) -> bool:
        fewer = int(self._kv_tokens * _KEPT_AFTER_OOM)
        if fewer < self._model.context_length:
            return False
        self._kv_tokens = fewer
        return True


def sampling_of(generation: Generation) -> dict[str, Any]:
    """What the caller said of sampling, without what it left out."""
    sampling = generation.sampling
    asked: dict[str, Any] = {name: getattr(sampling, name) for name in _SCALARS if sampling.HasField(name)}
    if sampling.HasField("seed"):
        emitted = len(generation.token_ids) - generation.prompt_tokens
        asked["seed"] = resumed_seed(sampling.seed, emitted)
    if sampling.logit_bias:
        asked["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.min_tokens:
        asked["min_tokens"] = sampling.min_tokens
        asked["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.ignore_eos:
        asked["ignore_eos"] = True
    return asked
