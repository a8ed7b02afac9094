"""The bound is one: no text has fewer tokens than it says, and absurd ones are refused unencoded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tiny_model
from tests.unit.tokenizer.fakes import ByteEncoder, loaded, spec
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import TokenizerBundle
from tokenfleet.runtime.models.gguf_tokenizer import convert
from tokenfleet.tokenizer.encoders import ReferenceEncoder
from tokenfleet.tokenizer.least_tokens import TokenLength, token_length
from tokenfleet.v1 import common_pb2, tokenizer_pb2

PIECES = st.sampled_from(
    ["<|endoftext|>", "<|im_start|>", "hello world", " ", "\n", "\x04", "é", "🙂", "x" * 40]
)


@pytest.fixture
def bundle(tmp_path: Path) -> TokenizerBundle:
    return convert(tiny_model.write_gguf(tmp_path / "model.gguf"), tmp_path)


def changed(bundle: TokenizerBundle, change: Any) -> TokenizerBundle:
    content = json.loads(bundle.tokenizer_json.read_text())
    change(content)
    bundle.tokenizer_json.write_text(json.dumps(content))
    return bundle


def without(byte: int) -> Any:
    """Takes a byte's token out of the vocabulary, as real ones lack some control characters."""

    def change(content: dict[str, Any]) -> None:
        letter = chr(0x100 + byte)  # how byte-level vocabularies write a control character
        del content["model"]["vocab"][letter]

    return change


@pytest.mark.parametrize("change", [lambda content: None, without(4)], ids=["whole", "lacking a byte"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(PIECES | st.text(max_size=20), max_size=30).map("".join))
def test_no_text_has_fewer_tokens(bundle: TokenizerBundle, change: Any, text: str) -> None:
    content = json.loads(bundle.tokenizer_json.read_text())
    if "\u0104" in content["model"]["vocab"]:
        changed(bundle, change)
    length = token_length(bundle)
    assert length.most_bytes == len("<|endoftext|>")
    least = length.least_tokens(text, 0)
    assert least <= len(ReferenceEncoder(bundle.tokenizer_json.read_text()).encode(text, False))
    if change is not None and "\x04" not in text:
        assert least == -(-len(text.encode()) // length.most_bytes)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(normalizer={"type": "Lowercase"}),
        lambda content: content.update(
            normalizer={"type": "Replace", "pattern": {"Regex": "x"}, "content": ""}
        ),
        lambda content: content.update(pre_tokenizer={"type": "Whitespace"}),
        lambda content: content["added_tokens"][0].update(rstrip=True),
        lambda content: content["model"].update(unk_token="<|endoftext|>"),
        lambda content: content["model"].update(type="WordPiece"),
    ],
)
def test_where_text_may_vanish_there_is_no_bound(bundle: TokenizerBundle, change: Any) -> None:
    assert token_length(changed(bundle, change)).least_tokens("x" * 10_000, 1) == 0


def test_composing_characters_makes_the_bound_looser(bundle: TokenizerBundle) -> None:
    plain = token_length(bundle).most_bytes
    changed(bundle, lambda content: content.update(normalizer={"type": "NFC"}))
    assert token_length(bundle).most_bytes == 4 * plain


def test_a_text_that_must_be_too_long_is_refused_unencoded() -> None:
    encoder = ByteEncoder()
    bounded = replace(loaded(spec("m"), encoder), token_length=TokenLength(4))
    job = tokenizer_pb2.EncodeJob(model="m", text="x" * 4_004, max_tokens=1_000)
    with pytest.raises(
        FleetError, match=r"1000 tokens are taken, but the prompt has 1001 or more"
    ) as refused:
        bounded.encode(job, tokenizer_pb2.EncodeResult())
    assert refused.value.reason == common_pb2.REASON_CONTEXT_LENGTH_EXCEEDED
    assert not encoder.threads


def test_a_text_that_is_too_long_is_counted_and_no_ids_are_sent() -> None:
    result = tokenizer_pb2.EncodeResult()
    loaded(spec("m")).encode(tokenizer_pb2.EncodeJob(model="m", text="x" * 11, max_tokens=10), result)
    assert (result.token_count, len(result.token_ids), len(result.block_hashes)) == (11, 0, 0)
    loaded(spec("m")).encode(tokenizer_pb2.EncodeJob(model="m", text="x" * 10, max_tokens=10), result)
    assert (result.token_count, len(result.token_ids)) == (10, 10)
