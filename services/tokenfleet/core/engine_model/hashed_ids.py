"""The next token as a hash of all ids so far.

A wrong, lost or repeated id anywhere changes everything behind it, so comparing two texts proves that a
stream survived its worker unharmed. The hash runs over the bytes of the ids alone: prompt and generated ids
are alike, and a sequence resumed elsewhere goes on as if nothing had happened.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection, Sequence

from xxhash import xxh3_64

# Of 64 draws, one is from the tokens that hold only a part of a character.
_SPLIT_EVERY = 64


class Alphabet:
    """The ids that answers are made of: all that have text, parts of multi-byte characters included."""

    def __init__(self, token_bytes: Sequence[bytes], special_ids: Collection[int] = ()) -> None:
        ids = [i for i, content in enumerate(token_bytes) if content and i not in special_ids]
        if not ids:
            raise ValueError("the vocabulary has no token with text")
        self.ids = ids
        self.split_ids = [i for i in ids if not _is_text(token_bytes[i])] or ids


class HashedIds:
    """A `TokenSource`; call `next` once for each token."""

    def __init__(
        self,
        alphabet: Alphabet,
        ids: Sequence[int],
        *,
        mean_output_tokens: float = 0.0,
        min_tokens: int = 0,
    ) -> None:
        """`mean_output_tokens` 0: the answer never ends by itself. `min_tokens`: more before it may end."""
        self._ids = alphabet.ids
        self._split_ids = alphabet.split_ids
        self._end_below = int(2**32 / mean_output_tokens) if mean_output_tokens else 0
        self._protected = min_tokens
        packed = array("I", ids)
        if sys.byteorder == "big":
            packed.byteswap()
        self._hash = xxh3_64(packed.tobytes())

    def next(self) -> int | None:
        digest: int = self._hash.intdigest()
        if self._protected > 0:
            self._protected -= 1
        elif digest >> 32 < self._end_below:
            return None
        ids = self._split_ids if digest % _SPLIT_EVERY == 0 else self._ids
        token = ids[(digest >> 6 & 0x3FFFFFF) % len(ids)]
        self._hash.update(token.to_bytes(4, "little"))
        return token


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
