"""The ids that llama.cpp does not tell.

While a character is incomplete its server sends nothing, and with the token that completes it sends that
token's id alone: of "🎉" in three tokens, two ids are missing. It does say how many tokens there were and
what text they make, and the vocabulary says which tokens make these bytes. Where several splits do, the one
that a tokenizer would have made is taken: byte-pair merges come in the order of their ids, so that is the one
whose highest id is lowest. The text is the same for all of them.

An answer that is cut off by its budget within a character loses that character's tokens: nobody tells them.
"""

from __future__ import annotations

from collections.abc import Sequence

# Beyond a few bytes it is no part of a character, and the search would grow.
_MOST_BYTES = 32
_MOST_TOKENS = 6
# What the server makes of bytes that are no character.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Recovery:
    """Looks tokens up by their bytes."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        self._ids: dict[bytes, int] = {}  # few: what is whole characters is told at once
        for index, content in enumerate(token_bytes):
            if _REPLACEMENT in content.decode(errors="replace"):
                self._ids.setdefault(content, index)

    def missing(self, text: str, count: int, last: int) -> list[int]:
        """The `count` ids before `last` in the tokens that made `text`; empty where they cannot be told."""
        content, ending = text.encode(), self._token_bytes[last]
        before = content[: len(content) - len(ending)]
        if not content.endswith(ending) or len(before) > _MOST_BYTES or count > _MOST_TOKENS:
            return []
        splits = list(self._splits(before, count))
        return min(splits, key=max) if splits else []

    def _splits(self, content: bytes, count: int) -> list[list[int]]:
        if count == 1:
            token = self._ids.get(content)
            return [] if token is None else [[token]]
        found = []
        for end in range(1, len(content) - count + 2):
            token = self._ids.get(content[:end])
            if token is not None:
                found += [[token, *rest] for rest in self._splits(content[end:], count - 1)]
        return found
