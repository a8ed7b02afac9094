"""Where a text may be cut so that its parts, tokenized alone, give exactly the ids of the whole.

A tokenizer first finds the added tokens (`<|im_end|>` and the like) in the raw text, then normalizes, splits
and encodes each stretch between them on its own. So behind an added token nothing that stands before it can
matter, and nothing that follows it can change what came before, provided that the token is always found where
its text stands. That holds for a token

- that is looked for in the raw text, and takes no white space from its neighbours nor asks for a word's end;
- that no other such token contains, is contained in, or overlaps at either end, nor it itself.

Only these are *borders*. What follows one is encoded with the border in front, whose id is then dropped:
some tokenizers treat the very beginning of a text differently. Other places, blanks say, are none: a
pre-tokenizer may look ahead across any of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.tokenizer.encoders import CHECKED_TEXTS, Encoder

log = get_logger(__name__)

# More would make each look at a text slower; templates have two to six.
MOST_BORDERS = 8


@dataclass(slots=True)
class Cut:
    """A place right behind a border."""

    position: int  # characters
    border: str


class Borders:
    """The border tokens of one tokenizer, by their text."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)
        self._tokens = tuple(ids)

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def first(self, text: str, start: int) -> int:
        """The end of the first border behind `start`; 0: there is none.

        One that stands right there is passed over: most conversations begin with the same.
        """
        nearest, end = len(text), 0
        for token in self._tokens:
            position = text.find(token, start + 1, nearest + len(token))
            if 0 <= position < nearest:
                nearest, end = position, position + len(token)
        return end

    def last(self, text: str, start: int) -> Cut | None:
        """The last border that begins at or after `start`."""
        cut = None
        for token in self._tokens:
            position = text.rfind(token, start)
            if position >= 0:
                start, cut = position + 1, Cut(position + len(token), token)
        return cut

    def all(self, text: str) -> list[Cut]:
        """Every border in the text, in order."""
        cuts = []
        for token in self._tokens:
            position = text.find(token)
            while position >= 0:
                cuts.append(Cut(position + len(token), token))
                position = text.find(token, position + len(token))
        return sorted(cuts, key=lambda cut: cut.position)


def find_borders(
    added_tokens: Sequence[Mapping[str, Any]], used: Collection[str], template: str, encoder: Encoder
) -> Borders:
    """The added tokens that are borders, out of those in `used` and in the template's source."""
    raw = [token for token in added_tokens if not token.get("normalized")]
    contents = [str(token["content"]) for token in raw]
    wanted = [
        token
        for token in raw
        if (token["content"] in used or token["content"] in template) and _plain(token, contents)
    ]
    ids = {str(token["content"]): int(token["id"]) for token in wanted[:MOST_BORDERS]}
    sound = {border: token_id for border, token_id in ids.items() if _holds(border, token_id, encoder)}
    if len(sound) < len(ids):
        log.warning("added tokens that part no text", tokens=sorted(set(ids) - set(sound)))
    return Borders(sound)


def ids_behind(encoder: Encoder, borders: Borders, border: str, text: str) -> array[int] | None:
    """The ids of a text that stands behind a border; None if the encoder did not take the border for one."""
    ids = encoder.encode(border + text, False)
    return ids[1:] if len(ids) and ids[0] == borders.ids[border] else None


def _plain(token: Mapping[str, Any], contents: Iterable[str]) -> bool:
    content = str(token["content"])
    looks_around = any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word"))
    if looks_around or not content or content[0].isspace():
        return False
    others = [other for other in contents if other != content]
    return not _overlap(content, content) and not any(
        other in content or content in other or _overlap(other, content) or _overlap(content, other)
        for other in others
    )


def _overlap(one: str, other: str) -> bool:
    """Whether a proper end of the first is a proper beginning of the second."""
    return any(one.endswith(other[:length]) for length in range(1, min(len(one), len(other))))


def _holds(border: str, token_id: int, encoder: Encoder) -> bool:
    """Tries on texts what is true by construction, since there is more than one implementation of it."""
    for text in CHECKED_TEXTS:
        before, behind = encoder.encode(text + border, False), encoder.encode(border + text, False)
        if not len(behind) or behind[0] != token_id:
            return False
        if encoder.encode(text + border + text, False) != before + behind[1:]:
            return False
    return True
