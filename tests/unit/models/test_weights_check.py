"""Broken weights are refused with the reason before any engine sees them."""

import json
from pathlib import Path

import pytest

from tests import real_model, tiny_model
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import ModelCache
from tokenfleet.runtime.models.weights_check import check_weights
from tokenfleet.v1 import common_pb2

GGUF = tiny_model.gguf(bytes(1000))
TENSORS = tiny_model.safetensors(bytes(1000))


def test_whole_files_pass(tmp_path: Path) -> None:
    for name, content in {"a.gguf": GGUF, "a.safetensors": TENSORS, "a.unknown": b"?"}.items():
        (tmp_path / name).write_bytes(content)
        check_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.gguf", GGUF[:-1], "is truncated: it has"),
        ("a.gguf", GGUF[:100], "ends inside its header|no readable gguf"),
        ("a.gguf", b"GGML" + GGUF[4:], "does not begin with GGUF"),
        ("a.gguf", b"", "no readable gguf"),
        ("a.gguf", GGUF[:8] + b"\xff" * 8 + GGUF[16:], "no readable gguf"),
        ("a.safetensors", TENSORS[:-1], "is truncated: it has"),
        ("a.safetensors", TENSORS[:20], "no readable safetensors"),
        ("a.safetensors", b"\xff" * 8 + TENSORS[8:], "its header claims"),
        ("a.safetensors", b"", "no readable safetensors"),
        ("a.safetensors", b"<html>not found</html>", "no readable safetensors|claims"),
    ],
)
def test_what_is_broken_is_said(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    spec = common_pb2.ModelSpec(name="m", source=f"file://{tmp_path / name}")
    with pytest.raises(FleetError, match=says) as caught:
        ModelCache(tmp_path / "cache").weights(spec)
    assert caught.value.reason == common_pb2.REASON_LOAD_FAILED
    assert name in caught.value.message


def test_a_folder_is_checked_by_its_index_and_part_by_part(tmp_path: Path) -> None:
    parts = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    (tmp_path / "model-1.safetensors").write_bytes(TENSORS)
    with pytest.raises(FleetError, match=r"lacks model-2\.safetensors"):
        check_weights(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(TENSORS[:-10])
    with pytest.raises(FleetError, match=r"model-2\.safetensors is truncated"):
        check_weights(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(TENSORS)
    check_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(FleetError, match="no readable index"):
        check_weights(tmp_path)


@pytest.mark.real_model
def test_a_real_model_passes_and_its_truncated_copy_does_not(tmp_path: Path) -> None:
    path = real_model.cache().weights(real_model.spec())
    check_weights(path)
    copy = tmp_path / "copy.gguf"
    with path.open("rb") as whole, copy.open("wb") as part:
        part.write(whole.read()[:-1])
    with pytest.raises(FleetError, match="is truncated"):
        check_weights(copy)
