"""The bytes behind each token id: what turns generated ids into text.

A decoder answers with strings and hides that a character may be spread over several tokens; with bytes, the
one place that assembles text can decide what is final. Two families cover the models served: byte-level BPE,
where each character of a token stands for one byte, and sentencepiece, where `▁` is a space and `<0xNN>` a
byte that has no token of its own.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models.bundle import TokenizerBundle, load_failed
from tokenfleet.runtime.models.token_bytes import TokenBytes
from tokenfleet.v1 import common_pb2

_SPACE = "▁"
_RAW_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Indexed by id. Special tokens, and ids that no token has, are b""."""

    token_bytes: Sequence[bytes]
    special_ids: frozenset[int]

    @property
    def size(self) -> int:
        return len(self.token_bytes)

    def text_of(self, token: int) -> str:
        """To be shown alone: a part of a character as U+FFFD, an id that is not known as nothing."""
        return self.token_bytes[token].decode(errors="replace") if token < self.size else ""


def load_vocabulary(bundle: TokenizerBundle) -> Vocabulary:
    """Raises FleetError when the file is broken or its decoder is of neither family."""
    try:
        # not orjson, which keeps the keys of what it read: here those are tokens
        tokenizer = json.loads(bundle.tokenizer_json.read_bytes())
        vocabulary: dict[str, int] = _vocabulary_of(tokenizer["model"])
        added: list[dict[str, Any]] = tokenizer.get("added_tokens") or []
        decoders = {decoder["type"] for decoder in _flat(tokenizer.get("decoder"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise load_failed(f"{bundle.tokenizer_json} is no usable tokenizer: {error!r}") from error
    special = frozenset(token["id"] for token in added if token.get("special"))
    highest = max((*vocabulary.values(), *(token["id"] for token in added)), default=-1)
    token_bytes = [b""] * (highest + 1)
    for index, content in zip(vocabulary.values(), _decoded(list(vocabulary), decoders), strict=True):
        token_bytes[index] = content
    for token in added:
        token_bytes[token["id"]] = b"" if token.get("special") else token["content"].encode()
    return Vocabulary(TokenBytes(token_bytes), special)


def _vocabulary_of(model: dict[str, Any]) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score
        return {token: index for index, (token, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _flat(component: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if component is None:
        return
    if component["type"] == "Sequence":
        for part in component["decoders"]:
            yield from _flat(part)
    else:
        yield component


def _decoded(tokens: list[str], decoders: set[str]) -> list[bytes]:
    if "ByteLevel" in decoders:
        return _byte_level(tokens)
    if decoders & {"ByteFallback", "Metaspace"}:
        return [_sentencepiece(token) for token in tokens]
    raise FleetError(
        common_pb2.REASON_UNSUPPORTED,
        f"the tokenizer's decoder ({', '.join(sorted(decoders)) or 'none'}) is neither byte-level nor "
        "sentencepiece",
        field="tokenizer_source",
    )


def _byte_level(tokens: list[str]) -> list[bytes]:
    """All at once: a character is one byte, so the tokens' lengths stay what they were."""
    try:
        joined = _bytes_of("".join(tokens))
    except UnicodeEncodeError:
        return [_byte_level_token(token) for token in tokens]
    contents, start = [], 0
    for token in tokens:
        end = start + len(token)
        contents.append(joined[start:end])
        start = end
    return contents


def _byte_level_token(token: str) -> bytes:
    try:
        return _bytes_of(token)
    except UnicodeEncodeError:  # a token kept as plain text among the others
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    raw = _RAW_BYTE.fullmatch(token)
    return bytes((int(raw[1], 16),)) if raw else token.replace(_SPACE, " ").encode()


def _gpt2_characters() -> str:
    """GPT-2's table: the character of each byte. Printable ones are their own, the others U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


# The table is a character set like any other, and Python encodes those in C.
_GPT2 = codecs.charmap_build(_gpt2_characters())


def _bytes_of(text: str) -> bytes:
    return codecs.charmap_encode(text, "strict", _GPT2)[0]
