"""The conversion of a gguf's metadata, judged by the `tokenizers` library."""

import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests import tiny_model
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models.bundle import TokenizerBundle
from tokenfleet.runtime.models.gguf_metadata import read_metadata, read_tensors
from tokenfleet.runtime.models.gguf_tokenizer import convert
from tokenfleet.v1 import common_pb2


def converted(folder: Path, **changes: Any) -> tuple[TokenizerBundle, Tokenizer]:
    bundle = convert(tiny_model.write_gguf(folder / "model.gguf", **changes), folder)
    return bundle, Tokenizer.from_file(str(bundle.tokenizer_json))


def test_the_header_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_metadata(tiny_model.write_gguf(tmp_path / "model.gguf")) == tiny_model.metadata()


def test_merges_digits_spaces_and_bytes(tmp_path: Path) -> None:
    _, tokenizer = converted(tmp_path)
    assert tokenizer.encode("hello world").tokens == ["hello", "Ġworld"]
    assert tokenizer.encode("12").tokens == ["1", "2"]
    assert tokenizer.encode("é").tokens == ["Ã", "©"]
    text = "hello  wörld\n\t123 🙂"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_control_tokens_are_special_and_found_in_text(tmp_path: Path) -> None:
    _, tokenizer = converted(tmp_path)
    ids = tokenizer.encode("<|im_start|>hello<|im_end|>").ids
    assert [ids[0], ids[-1]] == [1, 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello"


def test_user_defined_tokens_are_found_and_shown(tmp_path: Path) -> None:
    types = tiny_model.metadata()["tokenizer.ggml.token_type"]
    types[0] = 4
    _, tokenizer = converted(tmp_path, **{"tokenizer.ggml.token_type": types})
    assert tokenizer.decode(tokenizer.encode("hello<|endoftext|>").ids) == "hello<|endoftext|>"


def test_what_goes_along_with_it(tmp_path: Path) -> None:
    bundle, _ = converted(tmp_path)
    assert (bundle.bos_token, bundle.bos_token_id, bundle.eos_token) == ("<|im_start|>", 1, "<|im_end|>")
    assert bundle.eos_token_ids == (2, 0), "the declared end first, then what llama.cpp also stops at"
    assert bundle.context_length == 512
    assert bundle.chat_template == tiny_model.CHAT_TEMPLATE


def test_a_begin_token_is_added_where_the_model_wants_one(tmp_path: Path) -> None:
    _, tokenizer = converted(tmp_path, **{"tokenizer.ggml.add_bos_token": True})
    assert tokenizer.encode("hello").ids[0] == 1
    assert tokenizer.encode("hello", add_special_tokens=False).ids[0] != 1


def test_llama_3_groups_digits_by_three_and_keeps_whole_tokens(tmp_path: Path) -> None:
    _, tokenizer = converted(tmp_path, **{"tokenizer.ggml.pre": "llama-bpe"})
    split = tokenizer.pre_tokenizer.pre_tokenize_str("It's 12345\n\n x")
    assert [piece for piece, _ in split] == ["It", "'s", "Ġ", "123", "45", "ĊĊ", "Ġx"]


@pytest.mark.parametrize("changes", [{"tokenizer.ggml.pre": "tekken"}, {"tokenizer.ggml.model": "llama"}])
def test_an_unknown_kind_is_refused_rather_than_guessed(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(FleetError, match="tokenizer_source") as caught:
        converted(tmp_path, **changes)
    assert caught.value.reason == common_pb2.REASON_UNSUPPORTED


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"tokenizer\.ggml\.merges") as caught:
        converted(tmp_path, **{"tokenizer.ggml.merges": None})
    assert caught.value.reason == common_pb2.REASON_LOAD_FAILED


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 something else",
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 40),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99),
    ],
    ids=["empty", "no gguf", "old version", "cut off", "unknown type"],
)
def test_a_broken_file_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    for read in (read_metadata, read_tensors):
        with pytest.raises(FleetError, match=r"no readable gguf") as caught:
            read(path)
        assert caught.value.reason == common_pb2.REASON_LOAD_FAILED


def test_a_truncated_file_never_passes(tmp_path: Path) -> None:
    whole = tiny_model.write_gguf(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in range(0, len(whole), 97):
        cut.write_bytes(whole[:length])
        for read in (read_metadata, read_tensors):
            with pytest.raises(FleetError):
                read(cut)


def test_values_that_nobody_asked_for_are_passed_over(tmp_path: Path) -> None:
    """Of every kind, arrays of arrays among them, and the tensors behind them are found."""
    path = tmp_path / "model.gguf"
    nested = struct.pack("<IQ", 9, 2) + 2 * (struct.pack("<IQ", 4, 1) + b"\x07\x00\x00\x00")
    values = [
        (b"a", 9, nested),
        (b"b", 9, struct.pack("<IQ", 8, 2) + struct.pack("<Q", 2) + b"hi" + struct.pack("<Q", 0)),
        (b"c", 12, struct.pack("<d", 0.5)),
        (b"general.alignment", 4, struct.pack("<I", 64)),
        (b"d", 8, struct.pack("<Q", 1) + b"x"),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(values))
    for key, kind, value in values:
        head += struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
    head += struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 8, 0, 128)
    path.write_bytes(head)
    assert read_metadata(path)["a"] == [[7], [7]]
    ((tensor,), begin) = read_tensors(path)
    assert (tensor.shape, tensor.kind, tensor.offset) == ((8,), 0, 128)
    assert begin == -(-len(head) // 64) * 64
