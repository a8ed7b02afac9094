"""A folder in Hugging Face's layout."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_model
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import ModelCache
from tokenfleet.v1 import common_pb2


def folder(path: Path, **files: Any) -> Path:
    path.mkdir()
    tokens = [{"id": 5, "content": "<s>"}, {"id": 6, "content": "</s>"}]
    (path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}), encoding="utf-8")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


def spec_of(path: Path, **fields: Any) -> common_pb2.ModelSpec:
    return common_pb2.ModelSpec(name="m", source=f"file://{path}", **fields)


def test_everything_is_found_where_it_lies(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "model",
        tokenizer_config={"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "plain"},
        config={"max_position_embeddings": 4096, "eos_token_id": 6},
        generation_config={"eos_token_id": [7, 6]},
    )
    bundle = ModelCache(tmp_path / "cache").tokenizer(spec_of(path))
    assert bundle.tokenizer_json == path / "tokenizer.json"
    assert (bundle.bos_token, bundle.bos_token_id, bundle.eos_token) == ("<s>", 5, "</s>")
    assert bundle.eos_token_ids == (6, 7)
    assert bundle.context_length == 4096
    assert bundle.chat_template == "plain"
    assert bundle.digest == hashlib.sha256(bundle.tokenizer_json.read_bytes()).hexdigest()


def test_a_template_file_wins_and_named_templates_have_a_default(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "chat"}]
    path = folder(tmp_path / "model", tokenizer_config={"chat_template": named})
    cache = ModelCache(tmp_path / "cache")
    assert cache.tokenizer(spec_of(path)).chat_template == "chat"
    (path / "chat_template.jinja").write_text("from the file", encoding="utf-8")
    assert cache.tokenizer(spec_of(path)).chat_template == "from the file"


def test_a_bare_tokenizer_is_enough(tmp_path: Path) -> None:
    bundle = ModelCache(tmp_path / "cache").tokenizer(spec_of(folder(tmp_path / "model")))
    assert bundle.chat_template is None
    assert bundle.eos_token_ids == ()


def test_the_tokenizer_source_wins_over_the_source(tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    spec = common_pb2.ModelSpec(
        name="m", source="hf://away", tokenizer_source=f"file://{path}/tokenizer.json"
    )
    assert ModelCache(tmp_path / "cache").tokenizer(spec).tokenizer_json == path / "tokenizer.json"


def test_no_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(FleetError, match=r"no readable tokenizer\.json") as caught:
        ModelCache(tmp_path / "cache").tokenizer(spec_of(tmp_path / "model"))
    assert caught.value.reason == common_pb2.REASON_LOAD_FAILED


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    (path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(FleetError, match=r"config\.json"):
        ModelCache(tmp_path / "cache").tokenizer(spec_of(path))


def test_the_digest_of_a_folder_is_what_sha256sum_says(tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    weights = tiny_model.safetensors(b"weights")
    (path / "model.safetensors").write_bytes(weights)
    cache = ModelCache(tmp_path / "cache")
    assert cache.weights(spec_of(path, digest=hashlib.sha256(weights).hexdigest())) == path, (
        "of its only file"
    )
    (path / "a.safetensors").write_bytes(tiny_model.safetensors(b"more"))
    command = "sha256sum *.safetensors | sha256sum"
    said = subprocess.run(command, shell=True, cwd=path, env={"LC_ALL": "C"}, capture_output=True, check=True)
    assert cache.weights(spec_of(path, digest=said.stdout.split()[0].decode())) == path
    (path / "a.safetensors").write_bytes(tiny_model.safetensors(b"other"))
    with pytest.raises(FleetError, match="not what the catalog says"):
        cache.weights(spec_of(path, digest=said.stdout.split()[0].decode()))
    for file in path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(FleetError, match="leave the digest out"):
        cache.weights(spec_of(path, digest="ab" * 32))
