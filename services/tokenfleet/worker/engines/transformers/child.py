"""The child's main program: loads the model and steps it."""

from __future__ import annotations

import os
from typing import Any

from tokenfleet.core.micro_batching import MicroBatcher
from tokenfleet.worker.engines.hosted import child

# Prompt tokens of one step: on a CPU everything waits long for more, on a GPU fewer would leave it idle.
_CPU_CHUNK = 512
_GPU_CHUNK = 4_096


def start(config: dict[str, Any], say: child.Say) -> tuple[Any, dict[str, Any]]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the files are here, and nothing else is to be fetched
    say("importing transformers")
    import torch
    import transformers

    from tokenfleet.worker.engines.transformers.stepper import Stepper

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(config["threads"])
    # cuDNN plans its attention anew for each length of the KV cache: on an H200, 45 of a step's 67 ms
    torch.backends.cuda.enable_cudnn_sdp(False)
    device = torch.device(_device(config["device"]))
    say(f"loading {config['model']} to {device}")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        config["model"],
        dtype=config["dtype"],
        attn_implementation=config["attn_implementation"],
        local_files_only=True,
        **config["model_kwargs"],
    )
    model = model.to(device).eval()
    on_gpu = device.type != "cpu"
    stepper = Stepper(
        model,
        MicroBatcher(
            window_s=config["window_ms"] / 1000,
            max_batch=config["max_batch"],
            capacity_tokens=config["kv_tokens"],
            max_padding=config["max_padding"],
        ),
        eos_ids=_eos_ids(model),
        block_size=config["block_size"],
        prefix_blocks=config["prefix_cache_tokens"] // config["block_size"],
        prefill_chunk_tokens=config["prefill_chunk_tokens"] or (_GPU_CHUNK if on_gpu else _CPU_CHUNK),
    )
    return stepper, {
        "version": transformers.__version__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(device),
        "vocabulary_size": model.get_output_embeddings().weight.shape[0],
        "context_length": getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0,
        "device_memory_bytes": torch.cuda.memory_allocated(device) if device.type == "cuda" else 0,
    }


def classify(error: BaseException) -> str | None:
    """The reason of what is known to happen."""
    return "OUT_OF_MEMORY" if type(error).__name__ == "OutOfMemoryError" else None


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(f"device is {wanted}, but torch {torch.__version__} finds no CUDA device here")
    return wanted


def _eos_ids(model: Any) -> frozenset[int]:
    """All ids that end an answer, from wherever the model says it."""
    found: set[int] = set()
    for config in (model.generation_config, model.config):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return frozenset(found)


if __name__ == "__main__":
    child.main(start, classify)
