"""How few tokens a text can have, without encoding it.

Encoding megabytes takes seconds, only to find that no model could read them. A token stands for at most as
many bytes as the vocabulary's longest, which bounds the number of tokens from below, provided that every byte
of the text ends up in some token. That holds for BPE on bytes, or falling back to them, whose normalizer and
pre-tokenizer drop nothing; bytes that the vocabulary lacks do not count. With any other tokenizer there is no
bound, and texts are encoded to be counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import TokenizerBundle, load_vocabulary

_KEEPING = frozenset({"ByteLevel", "Digits", "Metaspace", "Sequence", "Split"})
# Composing characters makes a text shorter, by no more than this factor.
_COMPOSITION = {"NFC": 4}


@dataclass(frozen=True, slots=True)
class TokenLength:
    """How much text one token can stand for."""

    most_bytes: int = 0  # 0: nobody knows
    dropped: bytes = b""  # those that the vocabulary lacks, and that leave no token behind

    def least_tokens(self, text: str, limit: int) -> int:
        """A lower bound of the number of tokens where it is above `limit`, otherwise 0."""
        if 4 * len(text) <= limit * self.most_bytes or not self.most_bytes:
            return 0
        kept = text.encode().translate(None, self.dropped)
        least = -(-len(kept) // self.most_bytes)
        return least if least > limit else 0


def token_length(bundle: TokenizerBundle) -> TokenLength:
    try:
        vocabulary = load_vocabulary(bundle)
        tokenizer = orjson.loads(bundle.tokenizer_json.read_bytes())
    except (FleetError, OSError, ValueError):
        return TokenLength()  # whoever encodes with it says what is wrong
    model, added = tokenizer["model"], tokenizer.get("added_tokens") or []
    known = set(vocabulary.token_bytes)
    dropped = bytes(byte for byte in range(256) if bytes((byte,)) not in known)
    fuses = model.get("unk_token") is not None and (dropped or not model.get("byte_fallback"))
    if (
        model.get("type") != "BPE"
        or fuses  # any number of unknown characters into one token
        or any(token.get("lstrip") or token.get("rstrip") for token in added)
        or not all(_keeps(part) for part in _parts(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    ):
        return TokenLength()
    longest = max(map(len, [*known, *(token["content"].encode() for token in added)]))
    return TokenLength(_shrinkage(tokenizer.get("normalizer")) * longest, dropped)


def _shrinkage(normalizer: dict[str, Any] | None) -> int:
    """The factor by which it can shorten a text at most; 0: nobody knows."""
    factor = 1
    for part in _parts(normalizer, "normalizers"):
        if part["type"] == "Replace":
            replaced = part["pattern"].get("String")
            factor *= replaced is not None and len(replaced.encode()) <= len(part["content"].encode())
        elif part["type"] not in ("Prepend", "Sequence"):
            factor *= _COMPOSITION.get(part["type"], 0)
    return factor


def _keeps(pre_tokenizer: dict[str, Any]) -> bool:
    return pre_tokenizer["type"] in _KEEPING and pre_tokenizer.get("behavior") != "Removed"


def _parts(component: dict[str, Any] | None, inside: str) -> Iterator[dict[str, Any]]:
    if component is not None:
        yield component
        for part in component.get(inside) or []:
            yield from _parts(part, inside)
