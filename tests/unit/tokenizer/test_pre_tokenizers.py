"""The quicker splits against the ones that they stand for, over all of Unicode."""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tokenizer import trained
from tokenfleet.tokenizer.encoders import FastEncoder, ReferenceEncoder
from tokenfleet.tokenizer.pre_tokenizers import with_quick_split

QUICKENED = ("byte_level", "byte_level_digits")
# White space, digits, signs and letters next to each other in every order.
texts = st.text(
    alphabet=st.sampled_from(" \n\t\u00a0\u2003\u0085'sdm1½Ⅷaé日,.🙂\uff12\U00011de3\u200b"), max_size=40
)


@lru_cache
def encoders(kind: str) -> tuple[FastEncoder, ReferenceEncoder]:
    content = trained.KINDS[kind]().to_str()
    return FastEncoder(content), ReferenceEncoder(content)


@pytest.mark.parametrize("kind", QUICKENED)
def test_it_is_the_same_split(kind: str) -> None:
    quick, reference = encoders(kind)

    @settings(max_examples=300, deadline=None)
    @given(texts | st.text(max_size=30))
    def same(text: str) -> None:
        assert quick.encode(text, False) == reference.encode(text, False)

    same()


@pytest.mark.parametrize("kind", QUICKENED)
def test_for_every_character(kind: str) -> None:
    """In lots, so that it takes seconds; ideographs and syllables, all letters, only here and there."""
    quick, reference = encoders(kind)
    alike = [(0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0x17000, 0x18CFF), (0x20000, 0x323AF)]
    characters = [
        character
        for code in range(0x40000)
        if not 0xD800 <= code <= 0xDFFF
        and (code % 199 == 0 or not any(first <= code <= last for first, last in alike))
        and ((character := chr(code)) and (code < 0x20000 or code % 199 == 0))
    ]
    characters += [chr(code) for code in range(0xE0000, sys.maxunicode + 1, 499)]
    for start in range(0, len(characters), 1000):
        lot = characters[start : start + 1000]
        text = "".join(f"a{c}1 {c} 3  {c}{c}5'{c}" for c in lot)
        if quick.encode(text, False) != reference.encode(text, False):
            different = [
                c for c in lot if quick.encode(f"a {c}1", False) != reference.encode(f"a {c}1", False)
            ]
            pytest.fail(f"from U+{ord(lot[0]):X}: {[hex(ord(c)) for c in different]}")


def test_other_splits_stay_as_they_are() -> None:
    for kind in set(trained.KINDS) - set(QUICKENED):
        content: dict[str, Any] = json.loads(trained.KINDS[kind]().to_str())
        assert with_quick_split(content) == content


@pytest.mark.parametrize("kind", QUICKENED)
def test_the_quick_ones_are_used(kind: str) -> None:
    content = json.loads(trained.KINDS[kind]().to_str())
    assert with_quick_split(content)["pre_tokenizer"]["pretokenizers"][0]["type"] == "Split"
