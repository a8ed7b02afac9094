import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests import tiny_model
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import TokenizerBundle, load_vocabulary
from tokenfleet.runtime.models.gguf_tokenizer import convert
from tokenfleet.v1 import common_pb2

SENTENCEPIECE: dict[str, Any] = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}


def bundle_of(path: Path, tokenizer: object) -> TokenizerBundle:
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return TokenizerBundle(path, None, None, None, None, (), "", 0)


def added(index: int, content: str, *, special: bool) -> dict[str, Any]:
    return {"id": index, "content": content, "special": special}


def test_byte_level_tokens_are_their_bytes(tmp_path: Path) -> None:
    bundle = convert(tiny_model.write_gguf(tmp_path / "model.gguf"), tmp_path)
    vocabulary = load_vocabulary(bundle)
    tokenizer = Tokenizer.from_file(str(bundle.tokenizer_json))
    text = "hello world é 🙂 \n\t\x00\x7f\u00a0"
    ids = tokenizer.encode(text).ids
    assert b"".join(vocabulary.token_bytes[token] for token in ids) == text.encode()
    assert sorted(vocabulary.token_bytes[3:259]) == [bytes((byte,)) for byte in range(256)]


def test_special_tokens_have_no_bytes(tmp_path: Path) -> None:
    bundle = convert(tiny_model.write_gguf(tmp_path / "model.gguf"), tmp_path)
    vocabulary = load_vocabulary(bundle)
    assert vocabulary.special_ids == {0, 1, 2}
    assert list(vocabulary.token_bytes[:3]) == [b"", b"", b""]
    assert vocabulary.size == len(tiny_model.tokens())


def test_sentencepiece(tmp_path: Path) -> None:
    bundle = bundle_of(
        tmp_path / "tokenizer.json",
        {
            "model": {"vocab": {"<s>": 0, "▁Hello": 1, "▁": 2, "<0x0A>": 3, "<0xF0>": 4, "é": 5}},
            "added_tokens": [added(0, "<s>", special=True), added(8, "<tool>", special=False)],
            "decoder": SENTENCEPIECE,
        },
    )
    vocabulary = load_vocabulary(bundle)
    expected = [b"", b" Hello", b" ", b"\n", b"\xf0", "é".encode(), b"", b"", b"<tool>"]
    assert list(vocabulary.token_bytes) == expected, "ids that no token has are empty"


def test_unigram_vocabularies_are_lists(tmp_path: Path) -> None:
    tokenizer = {"model": {"vocab": [["<unk>", 0.0], ["▁a", -1.5]]}, "decoder": {"type": "Metaspace"}}
    vocabulary = load_vocabulary(bundle_of(tmp_path / "tokenizer.json", tokenizer))
    assert list(vocabulary.token_bytes) == [b"<unk>", b" a"]


def test_plain_text_among_byte_level_tokens(tmp_path: Path) -> None:
    tokenizer = {"model": {"vocab": {"Ġa": 0, "▁中": 1, "Ċ": 2}}, "decoder": {"type": "ByteLevel"}}
    vocabulary = load_vocabulary(bundle_of(tmp_path / "tokenizer.json", tokenizer))
    assert list(vocabulary.token_bytes) == [b" a", "▁中".encode(), b"\n"]


def test_a_token_shown_alone(tmp_path: Path) -> None:
    tokenizer = {"model": {"vocab": {"Ġa": 0, "Ã": 1}}, "decoder": {"type": "ByteLevel"}}
    vocabulary = load_vocabulary(bundle_of(tmp_path / "tokenizer.json", tokenizer))
    assert [vocabulary.text_of(token) for token in range(3)] == [" a", "\N{REPLACEMENT CHARACTER}", ""]


def test_a_vocabulary_that_is_gone_leaves_nothing_behind(tmp_path: Path) -> None:
    """What stays pins the memory around it: a worker that loads and unloads would grow."""
    tokenizer = {
        "model": {"vocab": {f"one-of-many-{index}": index for index in range(5_000)}},
        "decoder": {"type": "ByteLevel"},
    }
    bundle = bundle_of(tmp_path / "tokenizer.json", tokenizer)
    del tokenizer
    before = sys.getallocatedblocks()
    assert load_vocabulary(bundle).size == 5_000
    assert sys.getallocatedblocks() - before < 500


def test_another_family_is_refused(tmp_path: Path) -> None:
    tokenizer = {"model": {"vocab": {"a": 0}}, "decoder": {"type": "WordPiece"}}
    with pytest.raises(FleetError, match="WordPiece") as caught:
        load_vocabulary(bundle_of(tmp_path / "tokenizer.json", tokenizer))
    assert caught.value.reason == common_pb2.REASON_UNSUPPORTED


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {}}', "null"])
def test_a_broken_file_is_a_clear_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(FleetError, match="no usable tokenizer") as caught:
        load_vocabulary(TokenizerBundle(path, None, None, None, None, (), "", 0))
    assert caught.value.reason == common_pb2.REASON_LOAD_FAILED
