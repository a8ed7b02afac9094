"""A catalog is either right, or every problem in it is named: file, entry, key, and the remedy."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokenfleet.core.residency import EngineNeed
from tokenfleet.model_loader.catalog import CatalogError, default_path, read_catalog
from tokenfleet.v1 import common_pb2

GOOD: dict[str, Any] = {
    "name": "m",
    "source": "file:///models/m.gguf",
    "context_length": 4096,
    "engines": [{"engine": "llamacpp", "weights_bytes": "94MiB", "kv_bytes": 1000}, {"engine": "sim"}],
}


def write(tmp_path: Path, *entries: object, **top: object) -> Path:
    path = tmp_path / "catalog.yaml"
    path.write_text(yaml.safe_dump({"models": list(entries), **top}))
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(CatalogError) as raised:
        read_catalog(path)
    return raised.value.problems


def test_the_default_catalog_is_good_and_says_what_it_must() -> None:
    catalog = read_catalog(default_path())
    specs = {spec.name: spec for spec in catalog.specs()}
    default = specs["smollm2-135m-instruct"]
    assert default.policy == common_pb2.ModelSpec.POLICY_WARM
    assert default.system_prompt == ""
    assert (default.context_length, default.block_size) == (8192, 16)
    assert [config.engine for config in default.engines] == ["llamacpp", "vllm"]
    sim = specs["sim-smollm2"]
    assert sim.policy == common_pb2.ModelSpec.POLICY_LAZY
    assert (sim.source, sim.digest) == (default.source, default.digest)


def test_an_entry_travels_whole(tmp_path: Path) -> None:
    raw = {
        **GOOD,
        "policy": "warm",
        "replicas": 2,
        "digest": "a" * 64,
        "block_size": 32,
        "system_prompt": "Be brief.",
        "created": "2024-10-31",
        "tokenizer_source": "file:///models/tokenizer",
        "engines": [{"engine": "vllm", "arguments": {"dtype": "bfloat16", "max_num_seqs": 32}}],
    }
    (spec,) = read_catalog(write(tmp_path, raw)).specs()
    assert spec.replicas == 2
    assert spec.created_unix_s == 1730332800
    arguments = {name: json.loads(value) for name, value in spec.engines[0].arguments.items()}
    assert arguments == {"dtype": "bfloat16", "max_num_seqs": 32}


def test_sizes_may_be_written_for_people(tmp_path: Path) -> None:
    catalog = read_catalog(write(tmp_path, GOOD))
    assert catalog.entries[0].entry().engines == (
        EngineNeed("llamacpp", 94 * 2**20 + 1000),
        EngineNeed("sim", 0),
    )


def changed(**fields: object) -> dict[str, object]:
    return {key: value for key, value in {**GOOD, **fields}.items() if value is not None}


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (changed(contxt_length=1), ["contxt_length", "context_length?"]),
        (changed(context_length=None), ["context_length: is missing"]),
        (changed(context_length="long"), ["context_length", "'long'"]),
        (changed(source="m.gguf"), ["source", "'m.gguf'"]),
        (changed(digest="abc"), ["digest", "'abc'"]),
        (changed(policy="hot"), ["policy", "'warm' or 'lazy'"]),
        (changed(engines=[]), ["engines", "at least one"]),
        (changed(engines=[{"engine": "ollama"}]), ["engines.0.engine", "'ollama'"]),
        (
            changed(engines=[{"engine": "sim", "weight_bytes": 1}]),
            ["engines.0.weight_bytes", "weights_bytes?"],
        ),
        (changed(engines=[{"engine": "sim", "kv_bytes": "some"}]), ["engines.0.kv_bytes"]),
        (changed(engines=[{"engine": "sim"}, {"engine": "sim"}]), ["engines", "sim is there twice"]),
        (changed(fallback="other"), ["fallback", "'other'"]),
        (changed(fallback="m"), ["fallback", "itself"]),
        (changed(block_size=0), ["block_size"]),
    ],
)
def test_a_problem_is_named_with_file_entry_and_key(
    tmp_path: Path, entry: dict[str, object], named: list[str]
) -> None:
    path = write(tmp_path, entry)
    (problem,) = problems(path)
    assert problem.startswith(f"{path}: model 'm': ")
    assert all(word in problem for word in named), problem


def test_every_problem_is_told_and_entries_without_a_name_by_number(tmp_path: Path) -> None:
    path = write(tmp_path, changed(name=None), changed(policy="hot", block_size=0), 7, modles=[])
    found = problems(path)
    assert len(found) == 5
    assert any("entry 1: name: is missing" in problem for problem in found)
    assert any("entry 3" in problem for problem in found)
    assert any("modles" in problem and "models?" in problem for problem in found)


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, GOOD, GOOD))
    assert "another entry has it already" in problem


@pytest.mark.parametrize("text", ["", "models: 3", "- a", "models: [", "\x00"])
def test_files_that_are_no_catalog_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(text)
    assert str(path) in problems(path)[0]


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path / "nowhere.yaml")
    assert "nowhere.yaml" in problem
    assert "--catalog" in problem


def test_fallbacks_that_go_in_a_circle_are_told_once(tmp_path: Path) -> None:
    ways = {"a": "b", "b": "c", "c": "a", "d": "a", "e": "f", "f": "e", "g": ""}
    path = write(tmp_path, *(GOOD | {"name": name, "fallback": way} for name, way in ways.items()))
    first, second = problems(path)
    assert "model 'a': fallback: a → b → c → a goes in a circle" in first
    assert "model 'e': fallback: e → f → e" in second
