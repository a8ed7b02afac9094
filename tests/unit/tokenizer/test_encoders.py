"""Both libraries on one small tokenizer, and what happens when they disagree."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_model
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import TokenizerBundle
from tokenfleet.runtime.models.gguf_tokenizer import convert
from tokenfleet.tokenizer import encoders
from tokenfleet.tokenizer.encoders import FastEncoder, ReferenceEncoder, first_difference, open_encoder
from tokenfleet.v1 import common_pb2

TEXTS = ("hello world", "<|im_start|>user\nhello<|im_end|>\n", "12 é 🙂\n\n  x", "")


@pytest.fixture
def bundle(tmp_path: Path) -> TokenizerBundle:
    return convert(tiny_model.write_gguf(tmp_path / "model.gguf"), tmp_path)


@pytest.mark.parametrize("backend", ["fastokens", "tokenizers"])
def test_ids_go_there_and_back(bundle: TokenizerBundle, backend: str) -> None:
    encoder = open_encoder(bundle, backend)
    assert encoder.name == backend
    assert encoder.vocabulary_size == len(tiny_model.tokens())
    for text in TEXTS:
        ids = encoder.encode(text, False)
        assert isinstance(ids, array)
        assert ids.itemsize == 4
        assert encoder.decode(ids, False) == text
    assert encoder.decode(encoder.encode(TEXTS[1], False), True) == "user\nhello\n"


def test_the_faster_one_is_taken_when_it_is_right(bundle: TokenizerBundle) -> None:
    assert open_encoder(bundle, "auto").name == "fastokens"


class Wrong(FastEncoder):
    def encode(self, text: str, add_special_tokens: bool) -> array[int]:
        ids = super().encode(text, add_special_tokens)
        return ids[:-1] if "½" in text else ids


class WrongBack(FastEncoder):
    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return super().decode(token_ids, False)


@pytest.mark.parametrize("wrong", [Wrong, WrongBack])
def test_one_that_differs_is_not_used(
    bundle: TokenizerBundle, monkeypatch: pytest.MonkeyPatch, wrong: type[FastEncoder]
) -> None:
    monkeypatch.setattr(encoders, "FastEncoder", wrong)
    assert open_encoder(bundle, "auto").name == "tokenizers"


def test_the_check_finds_a_different_split(bundle: TokenizerBundle, tmp_path: Path) -> None:
    """Digits kept together instead of one by one."""
    (tmp_path / "other").mkdir()
    merges = [*tiny_model.MERGES, "1 2"]
    tokens = [*tiny_model.tokens(), "12"]
    types = [*tiny_model.metadata()["tokenizer.ggml.token_type"], 1]
    changes: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges}
    changes |= {"tokenizer.ggml.token_type": types, "tokenizer.ggml.pre": "gpt-2"}
    gguf = tiny_model.write_gguf(tmp_path / "other.gguf", **changes)
    other = convert(gguf, tmp_path / "other")
    one, two = (ReferenceEncoder(b.tokenizer_json.read_text(encoding="utf-8")) for b in (bundle, other))
    different = first_difference(one, two, bundle)
    assert different is not None
    assert "1234567" in different


def test_a_byte_that_the_vocabulary_lacks_is_no_error(bundle: TokenizerBundle, tmp_path: Path) -> None:
    """Real vocabularies lack bytes, too; the quicker library refuses such a text."""
    (tmp_path / "poor").mkdir()
    tokens = ["<gone>" if token == "h" else token for token in tiny_model.tokens()]
    types = tiny_model.metadata()["tokenizer.ggml.token_type"]
    changes: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["l l"]}
    gguf = tiny_model.write_gguf(tmp_path / "poor.gguf", **changes, **{"tokenizer.ggml.token_type": types})
    poor = convert(gguf, tmp_path / "poor")
    one, two = (open_encoder(poor, backend) for backend in ("fastokens", "tokenizers"))
    assert one.encode("hello", False) == two.encode("hello", False) == one.encode("ello", False)


@pytest.mark.parametrize("backend", ["auto", "fastokens", "tokenizers"])
def test_a_broken_file_is_a_clear_error(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(FleetError, match="no usable tokenizer") as caught:
        open_encoder(TokenizerBundle(path, None, None, None, None, (), "", 0), backend)
    assert caught.value.reason == common_pb2.REASON_LOAD_FAILED
