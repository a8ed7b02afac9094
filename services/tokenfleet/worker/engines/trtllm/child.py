"""The main program of TensorRT-LLM's child: `python -m tokenfleet.worker.engines.trtllm.child`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenfleet.worker.engines.hosted.child import Say, main

_OUT_OF_MEMORY = ("out of memory", "outofmemory", "insufficient memory", "no free blocks")


def start(config: dict[str, Any], say: Say) -> tuple[Any, dict[str, Any]]:
    say("importing TensorRT-LLM")
    import tensorrt_llm
    from tensorrt_llm.llmapi import KvCacheConfig

    from tokenfleet.worker.engines.trtllm.stepped import SteppedLlm

    arguments = dict(config["arguments"])
    kv_cache = KvCacheConfig(**arguments.pop("kv_cache_config"))
    say("loading the model" if config["backend"] == "pytorch" else "loading the engine, or building it")
    llm = _llm_of(config["backend"])(model=config["model"], kv_cache_config=kv_cache, **arguments)
    engine = SteppedLlm(llm, config["block_size"], frozenset(config["end_ids"]))
    say("generating one token")
    engine.introduce()
    return engine, {
        "version": tensorrt_llm.__version__,
        "kv_tokens": engine.kv_tokens,
        "vocabulary": vocabulary_of(Path(config["model"])),
    }


def _llm_of(backend: str) -> Any:
    """The same API twice: on PyTorch, and on engines that were built ahead."""
    if backend == "tensorrt":
        from tensorrt_llm._tensorrt_engine import LLM
    else:
        from tensorrt_llm import LLM
    return LLM


def vocabulary_of(folder: Path) -> int:
    """Of a checkpoint or of an engine, by its own configuration; 0: it does not say."""
    try:
        told = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return 0
    return int(told.get("vocab_size") or told.get("pretrained_config", {}).get("vocab_size") or 0)


def classify(error: BaseException) -> str | None:
    text = f"{type(error).__name__} {error}".lower()
    lacking = isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY)
    return "OUT_OF_MEMORY" if lacking else None


if __name__ == "__main__":
    main(start, classify)
