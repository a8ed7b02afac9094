"""Reads a tokenizer.json's vocabulary, as a program of its own that writes it packed to standard output.

Parsing takes hundreds of thousands of small objects and holds the interpreter for a tenth of a second and
more. In a process that serves, other models' tokens would wait for it, and the memory between what lives
longer would never be given back. The program needs the standard library alone, so that it starts at once: it
is run by its path, and imports nothing of this package.

What it writes is one JSON line, `{"special": […], "size": …}` or `{"refused": "why"}`, and behind the former
where each token ends, as native unsigned integers, and all tokens' bytes.

A decoder answers with strings and hides that a character may be spread over several tokens; with bytes, the
one place that assembles text can decide what is final. Two families cover the models served: byte-level BPE,
where each character of a token stands for one byte, and sentencepiece, where `▁` is a space and `<0xNN>` a
byte that has no token of its own.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from array import array
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

_SPACE = "▁"
_RAW_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class UnknownDecoderError(Exception):
    """The tokenizer's decoder is of neither family."""


def main(path: str) -> None:
    output = sys.stdout.buffer
    try:
        tokens, special = read(path)
    except UnknownDecoderError as refusal:
        output.write(json.dumps({"refused": str(refusal)}).encode() + b"\n")
        return
    output.write(json.dumps({"special": special, "size": len(tokens)}).encode() + b"\n")
    output.write(array("I", accumulate(map(len, tokens))).tobytes())
    output.write(b"".join(tokens))


def read(path: str) -> tuple[list[bytes], list[int]]:
    """Each id's bytes, b"" for special tokens and ids that no token has; and the special ids.

    Raises OSError, ValueError, KeyError or TypeError where the file is none, UnknownDecoderError.
    """
    with open(path, "rb") as file:
        tokenizer = json.load(file)
    vocabulary = _vocabulary_of(tokenizer["model"])
    added: list[dict[str, Any]] = tokenizer.get("added_tokens") or []
    decoders = {decoder["type"] for decoder in _flat(tokenizer.get("decoder"))}
    highest = max((*vocabulary.values(), *(token["id"] for token in added)), default=-1)
    tokens = [b""] * (highest + 1)
    for index, content in zip(vocabulary.values(), _decoded(list(vocabulary), decoders), strict=True):
        tokens[index] = content
    for token in added:
        tokens[token["id"]] = b"" if token.get("special") else token["content"].encode()
    return tokens, [token["id"] for token in added if token.get("special")]


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
    raise UnknownDecoderError(
        f"the tokenizer's decoder ({', '.join(sorted(decoders)) or 'none'}) is neither byte-level nor "
        "sentencepiece"
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


if __name__ == "__main__":
    main(sys.argv[1])
