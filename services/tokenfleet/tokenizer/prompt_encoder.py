"""Text to ids and block hashes, by way of what is known of its beginning.

A prompt is encoded in two parts, up to its last border and from there on. The first is kept, and the next
turn of the conversation begins with it; the second, behind the last border, is mostly the few tokens with
which a template opens the answer, and those are remembered, too.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import lru_cache

from tokenfleet.core.blocks import packed_hashes
from tokenfleet.tokenizer.borders import Borders, ids_behind
from tokenfleet.tokenizer.encoders import Encoder
from tokenfleet.tokenizer.prefix_cache import PrefixCache

SHORT_ENDING = 64
REMEMBERED_ENDINGS = 256


@dataclass(slots=True)
class Encoded:
    ids: array[int]
    hashes: array[int]
    known: int = 0  # how many of the ids needed no encoding


class PromptEncoder:
    """Safe to use from any thread. The ids are those of the whole text encoded afresh."""

    def __init__(self, encoder: Encoder, borders: Borders, block_size: int, cache_bytes: int) -> None:
        self._encoder = encoder
        self._borders = borders
        self._block_size = block_size
        self._cache = PrefixCache(borders, block_size, cache_bytes) if borders and cache_bytes else None
        self._short_ending = lru_cache(REMEMBERED_ENDINGS)(self._behind)
        self._adds_tokens = len(encoder.encode("", True)) > 0

    @property
    def cache_bytes(self) -> int:
        return self._cache.bytes if self._cache is not None else 0

    def encode(self, text: str, salt: str, add_special_tokens: bool = False) -> Encoded:
        if self._cache is None or (add_special_tokens and self._adds_tokens):
            return self._afresh(text, salt, add_special_tokens)
        prefix = self._cache.find(text, salt)
        ids, border, position = prefix.ids, prefix.border, prefix.characters
        cut = self._borders.last(text, position)
        if cut is not None:
            part = text[position : cut.position]
            new = self._behind(border, part) if border else self._encoder.encode(part, False)
            if new is None:
                return self._afresh(text, salt, False)
            ids, border, position = ids + new, cut.border, cut.position
        if not border:
            return self._afresh(text, salt, False)
        rest = text[position:]
        ending = self._short_ending(border, rest) if len(rest) <= SHORT_ENDING else self._behind(border, rest)
        if ending is None:
            return self._afresh(text, salt, False)
        whole = ids + ending
        hashes = packed_hashes(whole, self._block_size, salt, prefix.hashes)
        if cut is not None:
            self._cache.add(prefix, text, cut, ids, hashes, salt)
        return Encoded(whole, hashes, len(prefix.ids))

    def _afresh(self, text: str, salt: str, add_special_tokens: bool) -> Encoded:
        ids = self._encoder.encode(text, add_special_tokens)
        return Encoded(ids, packed_hashes(ids, self._block_size, salt))

    def _behind(self, border: str, text: str) -> array[int] | None:
        return ids_behind(self._encoder, self._borders, border, text)
