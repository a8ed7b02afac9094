"""What a catalog entry may say about vLLM: its own names, the common ones typed, the rest passed through."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tokenfleet.worker.engines.arguments import EngineArguments


class VllmArguments(EngineArguments):
    """Names are those of vLLM's EngineArgs. What is left out is vLLM's own default, unless said otherwise."""

    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    load_format: str = "auto"
    trust_remote_code: bool = False
    max_model_len: int = Field(0, ge=0)  # 0: the entry's context length
    max_num_seqs: int | None = Field(None, ge=1)
    max_num_batched_tokens: int | None = Field(None, ge=1)
    tensor_parallel_size: int = Field(1, ge=1)
    pipeline_parallel_size: int = Field(1, ge=1)
    # memory for the KV cache: these many bytes, else the entry's kv_bytes, else by the fraction of the device
    kv_cache_memory_bytes: int = Field(0, ge=0)
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    enable_prefix_caching: bool = True
    block_size: int = Field(0, ge=0)  # 0: the entry's, or the next that the device can do
    enforce_eager: bool | None = None  # None: on CPUs yes, where compiling takes longer than it gains
    enable_sleep_mode: bool = False
    extra: dict[str, Any] = Field(default_factory=dict)  # any other of vLLM's EngineArgs
    # the worker's own
    n_threads: int = Field(0, ge=0)  # on CPUs; 0: the worker's share
    start_timeout_s: float = Field(1_800, gt=0)
    stall_timeout_s: float = Field(60, gt=0)  # no step for so long, or 20 of its slowest ones: wedged

    def engine_args(self) -> dict[str, Any]:
        """What goes to vLLM as it is."""
        own = {"extra", "n_threads", "start_timeout_s", "stall_timeout_s"}
        given = self.model_dump(exclude=own, exclude_none=True)
        told = {name: value for name, value in given.items() if value is False or value != 0}
        return {**told, **self.extra}
