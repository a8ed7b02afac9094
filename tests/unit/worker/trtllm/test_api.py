"""The adapter uses no names of TensorRT-LLM but those of `api.json`, and these are what the tool looks up."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import tokenfleet.worker.engines.trtllm
from tokenfleet.worker.engines.trtllm.arguments import KvCacheArguments, TrtllmArguments
from tokenfleet.worker.engines.trtllm.request import _NAMES
from tools.trtllm_api import CALLED, FIELDS, READ, Missing, look_up

FOLDER = Path(tokenfleet.worker.engines.trtllm.__file__).parent
API: dict[str, Any] = json.loads((FOLDER / "api.json").read_text())
# What the child calls, by the name it is called with.
CALLS = {
    "_llm_of": "LLM.__init__",
    "KvCacheConfig": "KvCacheConfig.__init__",
    "SamplingParams": "SamplingParams.__init__",
    "GuidedDecodingParams": "GuidedDecodingParams.__init__",
    "generate_async": "LLM.generate_async",
    "ask": "LLM.get_stats_async",
}
TREES = {name: ast.parse((FOLDER / f"{name}.py").read_text()) for name in ("child", "stepped", "cache")}
NODES = [node for tree in TREES.values() for node in ast.walk(tree)]


def called(node: ast.Call) -> str:
    function = node.func
    while isinstance(function, ast.Call):
        function = function.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def test_imports_are_of_known_names() -> None:
    known = {name.partition(".")[0] for name in API["calls"]} | {"tensorrt_llm"}
    for node in NODES:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tensorrt_llm"):
            names = {alias.name for alias in node.names}
            assert names <= set(API["modules"].get(node.module, known)), ast.unparse(node)
        elif isinstance(node, ast.Import):
            assert all(name.name in known or "tensorrt" not in name.name for name in node.names)


def test_calls_give_known_parameters() -> None:
    seen = set()
    for node in NODES:
        if isinstance(node, ast.Call) and (name := CALLS.get(called(node))):
            seen.add(name)
            given = {keyword.arg for keyword in node.keywords if keyword.arg}
            assert given <= set(API["calls"][name]), ast.unparse(node)
    assert seen == set(CALLS.values())


def test_methods_of_the_llm_are_known() -> None:
    used = {
        node.attr
        for node in NODES
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self._llm"
    }
    assert {f"LLM.{name}" for name in used} <= set(API["calls"])


def test_what_is_read_of_results_is_known() -> None:
    of = {
        "completion": "CompletionOutput",
        "result": "RequestOutput",
        "likely": "Logprob",
        "of[token]": "Logprob",
    }
    seen = set()
    for node in ast.walk(TREES["stepped"]):
        if isinstance(node, ast.Attribute) and (name := of.get(ast.unparse(node.value))):
            seen.add(name)
            assert node.attr in API["reads"][name], ast.unparse(node)
    assert seen == set(API["reads"])


def test_keys_of_records_are_known() -> None:
    known = {key for keys in API["records"].values() for key in keys} | {"kvCacheStats"}
    function = next(n for n in ast.walk(TREES["stepped"]) if getattr(n, "name", "") == "_take_stats")
    keys = {
        node.slice.value
        for tree in (TREES["cache"], function)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    }
    assert keys
    assert keys <= known


def test_typed_arguments_have_the_engines_own_names() -> None:
    own = {"backend", "engine_dir", "extra", "start_timeout_s", "stall_timeout_s"}
    assert set(TrtllmArguments.model_fields) - own <= set(API["calls"]["LLM.__init__"])
    assert set(KvCacheArguments.model_fields) <= set(API["calls"]["KvCacheConfig.__init__"])
    assert set(_NAMES) <= set(API["calls"]["SamplingParams.__init__"])


def test_the_file_is_what_the_tool_looks_up() -> None:
    wanted = {name: sorted(names.split()) for name, (_, names) in CALLED.items()}
    wanted |= {f"{name}.__init__": sorted(names.split()) for name, (_, names) in FIELDS.items()}
    assert API["calls"] == wanted
    assert {name: API["reads"][name] for name in READ} == {
        name: sorted(names.split()) for name, (_, names) in READ.items()
    }


def test_a_name_that_a_checkout_lacks_is_named(tmp_path: Path) -> None:
    promises = tmp_path / "tests/unittest/api_stability/references"
    promises.mkdir(parents=True)
    (promises / "llm.yaml").write_text(
        "methods:\n  __init__:\n    parameters:\n      model: {annotation: str}\n"
    )
    with pytest.raises(Missing, match=r"LLM.__init__ has no dtype, load_format"):
        look_up(tmp_path)
