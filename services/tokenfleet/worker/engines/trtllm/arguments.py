"""What a catalog entry may say about TensorRT-LLM: its own names, the common ones typed, others passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tokenfleet.worker.engines.arguments import EngineArguments


class KvCacheArguments(BaseModel):
    """TensorRT-LLM's KvCacheConfig. What is left out is its own default, unless said otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enable_block_reuse: bool = True
    enable_partial_reuse: bool | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_attention_window: list[int] | None = None
    free_gpu_memory_fraction: float | None = Field(None, gt=0, le=1)
    host_cache_size: int | None = Field(None, ge=0)
    tokens_per_block: int | None = Field(None, ge=1)
    dtype: str | None = None
    event_buffer_max_size: int = Field(65_536, ge=0)  # 0: no cache events, and so no routing by them


class TrtllmArguments(EngineArguments):
    """Names are those of TensorRT-LLM's LLM. What is left out is its own default, unless said otherwise."""

    backend: Literal["pytorch", "tensorrt"] = "pytorch"  # tensorrt: an engine, built at the load if need be
    engine_dir: Path | None = None  # what `trtllm-build` made, on this node; None: the entry's own folder
    dtype: str | None = None
    load_format: Literal["auto", "dummy"] | None = None
    trust_remote_code: bool = False
    tensor_parallel_size: int = Field(1, ge=1)
    pipeline_parallel_size: int = Field(1, ge=1)
    context_parallel_size: int = Field(1, ge=1)
    moe_tensor_parallel_size: int | None = Field(None, ge=1)
    moe_expert_parallel_size: int | None = Field(None, ge=1)
    gpus_per_node: int | None = Field(None, ge=1)
    max_batch_size: int = Field(256, ge=1)
    max_num_tokens: int | None = Field(None, ge=1)
    max_input_len: int | None = Field(None, ge=1)  # None: all of the context
    max_seq_len: int | None = Field(None, ge=1)  # None: the entry's context length
    enable_chunked_prefill: bool = True
    guided_decoding_backend: Literal["xgrammar", "llguidance"] | None = "xgrammar"
    kv_cache_config: KvCacheArguments = Field(default_factory=lambda: KvCacheArguments.model_validate({}))
    extra: dict[str, Any] = Field(default_factory=dict)  # any other argument of LLM
    # the worker's own
    start_timeout_s: float = Field(3_600, gt=0)  # an engine that has to be built takes its time
    stall_timeout_s: float = Field(60, gt=0)  # no token for so long, or 20 of its slowest steps: wedged

    def llm_args(self, context_length: int) -> dict[str, Any]:
        """What goes to LLM as it is."""
        own = {"backend", "engine_dir", "extra", "start_timeout_s", "stall_timeout_s"}
        given = self.model_dump(exclude=own, exclude_none=True)
        given.setdefault("max_seq_len", context_length)
        given.setdefault("max_input_len", given["max_seq_len"])
        extra = dict(self.extra)
        given["kv_cache_config"].update(extra.pop("kv_cache_config", {}))
        return {**given, **extra}
