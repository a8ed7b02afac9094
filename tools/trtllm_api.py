"""The names of TensorRT-LLM that the engine `trtllm` relies on, out of TensorRT-LLM's own sources.

    python -m tools.trtllm_api CHECKOUT

TensorRT-LLM cannot be installed where this project is tested. So what the adapter uses of it is written down
here, looked up in a checkout of its sources (its Python declarations, and the files by which it promises not
to change its API), and kept in `api.json` beside the adapter; the tests allow the adapter nothing else. A
name that the checkout does not have ends this with an error that says which.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).parents[1] / "services/tokenfleet/worker/engines/trtllm/api.json"
STABILITY = "tests/unittest/api_stability"

# Callables and the parameters that are given to them: where their declarations are.
CALLED: dict[str, tuple[tuple[str, ...], str]] = {
    "LLM.__init__": (
        ("llm",),
        "model dtype load_format trust_remote_code tensor_parallel_size pipeline_parallel_size "
        "context_parallel_size moe_tensor_parallel_size moe_expert_parallel_size gpus_per_node "
        "max_batch_size max_num_tokens max_input_len max_seq_len enable_chunked_prefill "
        "guided_decoding_backend kv_cache_config enable_iter_perf_stats",
    ),
    "LLM.generate_async": (("llm",), "inputs sampling_params streaming"),
    "LLM.get_stats_async": (("llm",), "timeout"),
    "LLM.get_kv_cache_events_async": (("llm",), "timeout"),
    "LLM.shutdown": (("llm",), ""),
    "SamplingParams.__init__": (
        ("sampling_params",),
        "max_tokens min_tokens seed temperature top_k top_p min_p repetition_penalty presence_penalty "
        "frequency_penalty ignore_eos detokenize logprobs guided_decoding",
    ),
    "RequestOutput.abort": (("request_output",), ""),
}
# Classes that the stability files leave out, declared as fields in a Python file.
FIELDS = {
    "KvCacheConfig": (
        "tensorrt_llm/llmapi/llm_args.py",
        "enable_block_reuse enable_partial_reuse max_tokens max_attention_window free_gpu_memory_fraction "
        "host_cache_size tokens_per_block dtype event_buffer_max_size",
    ),
    "GuidedDecodingParams": ("tensorrt_llm/sampling_params.py", "json"),
}
# What is read of objects that TensorRT-LLM makes.
READ = {
    "RequestOutput": ("request_output", "outputs finished"),
    "CompletionOutput": ("completion_output", "token_ids finish_reason logprobs"),
}
LOGPROB = ("tensorrt_llm/executor/result.py", "Logprob", "logprob")
# Keys of the records that its streams bring.
EVENTS = (
    "tensorrt_llm/_utils.py",
    {
        "_stored_to_json": "type parent_hash blocks",
        "_stored_block_to_json": "block_hash tokens",
        "_unique_tokens_to_json": "token_id token_extra_id",
        "_removed_to_json": "type block_hashes",
        "to_json_str": "event_id data window_size attention_dp_rank",
    },
)
STATS = (
    "cpp/include/tensorrt_llm/executor/types.h",
    "KvCacheStats",
    "maxNumBlocks usedNumBlocks tokensPerBlock",
)
EXPORTS = {"tensorrt_llm/_tensorrt_engine/__init__.py": "LLM"}


class Missing(Exception):
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes api.json from TensorRT-LLM's sources.")
    parser.add_argument("checkout", type=Path, help="a checkout of TensorRT-LLM; parts of one will do")
    checkout = parser.parse_args().checkout
    try:
        found = look_up(checkout)
    except (Missing, OSError) as error:
        sys.exit(f"{checkout}: {error}")
    TARGET.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    print(f"{TARGET}: {found['version']}")


def look_up(checkout: Path) -> dict[str, Any]:
    """Raises Missing when something that is relied on is not there."""
    calls = {name: _promised(checkout, name, files, names) for name, (files, names) in CALLED.items()}
    for name, (path, names) in FIELDS.items():
        calls[f"{name}.__init__"] = _found(name, _fields(checkout / path, name), names)
    reads = {name: _attributes(checkout, name, file, names) for name, (file, names) in READ.items()}
    path, name, names = LOGPROB
    reads[name] = _found(name, _fields(checkout / path, name), names)
    return {
        "package": "tensorrt_llm",
        "version": _version(checkout / "tensorrt_llm/version.py"),
        "calls": calls,
        "reads": reads,
        "records": {"events": _events(checkout), "kvCacheStats": _stats(checkout)},
        "modules": {_module(path): _exported(checkout / path, name) for path, name in EXPORTS.items()},
    }


def _promised(checkout: Path, name: str, files: Iterable[str], names: str) -> list[str]:
    """A method's parameters, by the files that promise them."""
    _, method = name.split(".")
    known: set[str] = set()
    found = False
    for promise in _promises(checkout, files):
        if method in promise.get("methods", {}):
            found = True
            known |= set(promise["methods"][method]["parameters"])
    if not found:
        raise Missing(f"{name} is not there")
    return _found(name, known, names)


def _attributes(checkout: Path, name: str, file: str, names: str) -> list[str]:
    known: set[str] = set()
    for promise in _promises(checkout, (file,)):
        known |= set(promise.get("properties") or {})
        known |= set(promise.get("methods", {}).get("__init__", {}).get("parameters", {}))
    return _found(name, known, names)


def _promises(checkout: Path, files: Iterable[str]) -> Iterator[dict[str, Any]]:
    for folder in ("references_committed", "references"):
        for file in files:
            path = checkout / STABILITY / folder / f"{file}.yaml"
            if path.exists():
                yield yaml.safe_load(path.read_text())


def _fields(path: Path, name: str) -> set[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return {
                one.target.id
                for one in node.body
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
            }
    raise Missing(f"{path}: no class {name}")


def _events(checkout: Path) -> list[str]:
    path, functions = EVENTS
    found: set[str] = set()
    for node in ast.walk(ast.parse((checkout / path).read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            words = {
                one.value
                for one in ast.walk(node)
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
            }
            found |= set(_found(f"{path}: {node.name}", words, functions[node.name]))
    wanted = {name for names in functions.values() for name in names.split()}
    if missing := wanted - found:
        raise Missing(f"{path}: no {', '.join(sorted(missing))}")
    return sorted(found)


def _stats(checkout: Path) -> list[str]:
    path, name, names = STATS
    found = re.search(rf"struct {name}\s*{{(.*?)}};", (checkout / path).read_text(), re.DOTALL)
    members = set(re.findall(r"(\w+);", found[1] if found else ""))
    return _found(f"{path}: {name}", members, names)


def _version(path: Path) -> str:
    found = re.search(r'__version__ = "(.+)"', path.read_text())
    if found is None:
        raise Missing(f"{path}: no version")
    return found[1]


def _exported(path: Path, name: str) -> list[str]:
    if name not in path.read_text():
        raise Missing(f"{path}: no {name}")
    return [name]


def _module(path: str) -> str:
    return path.removesuffix("/__init__.py").replace("/", ".")


def _found(where: str, known: set[str], names: str) -> list[str]:
    if missing := [name for name in names.split() if name not in known]:
        raise Missing(f"{where} has no {', '.join(missing)}")
    return sorted(names.split())


if __name__ == "__main__":
    main()
