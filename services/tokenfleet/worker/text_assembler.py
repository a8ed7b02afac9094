"""From token ids to text: a pure function of (ids, stop strings, what the client already has).

Two things keep the text of a token from being final: a character may be spread over several tokens, and what
looks like the beginning of a stop string may become one. Both are held back here, and nowhere else. Because
the text released after n ids depends on those ids alone, never on how they arrived, a sequence resumed on
another worker goes on exactly behind the last character its client was given.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

_UTF8 = codecs.getincrementaldecoder("utf-8")


class Pieces:
    """A vocabulary for assembling: each id's bytes, and its text where it is text by itself."""

    def __init__(self, token_bytes: Sequence[bytes], size: int = 0) -> None:
        """`size`: ids up to it are known too, and have no text. Models pad their vocabularies."""
        self.token_bytes = token_bytes
        self.size = max(size, len(token_bytes))

    def bytes_of(self, token: int) -> bytes:
        return self.token_bytes[token] if token < len(self.token_bytes) else b""

    def text_of(self, token: int) -> str | None:
        """None where it is only a part of a character."""
        try:
            return self.token_bytes[token].decode()
        except UnicodeDecodeError:
            return None
        except IndexError:
            return ""


class TextAssembler:
    """One sequence's text. `push` ids as they come, `flush` at a clean end."""

    __slots__ = (
        "_decoder",
        "_held",
        "_mid_character",
        "_pieces",
        "_protected",
        "_stops",
        "_text_of",
        "excess",
        "stop_matched",
    )

    def __init__(self, pieces: Pieces, stops: Sequence[str] = (), min_tokens: int = 0) -> None:
        """Stop strings that end within the first `min_tokens` tokens do not count."""
        self._pieces = pieces
        self._text_of = pieces.text_of
        self._stops = tuple(stops)
        self._protected = min_tokens
        self._decoder: codecs.IncrementalDecoder | None = None
        self._mid_character = False
        self._held = ""
        self.stop_matched = ""  # set when a stop string ended the text
        self.excess = 0  # ids of the last push behind the stop string, to be dropped

    def push(self, ids: Sequence[int]) -> str:
        """The text that became final with these ids."""
        if self._stops:
            return self._push_watching(ids)
        if len(ids) == 1 and not self._mid_character:
            text = self._text_of(ids[0])
            if text is not None:
                return text
        return "".join([self._decode(token) for token in ids])

    def flush(self) -> str:
        """The end of the text: what was held back, an incomplete character as U+FFFD."""
        if self.stop_matched:
            return ""
        tail = ""
        if self._decoder is not None:
            tail = self._decoder.decode(b"", final=True)
            self._mid_character = False
        return self._watch(tail) + self._held if self._stops else tail

    def resume(self, ids: Sequence[int], emitted_chars: int) -> str:
        """Rebuilds the state after `ids`; answers what of their text the client does not have yet.

        Raises ValueError when the client has more text than these ids give.
        """
        released = self.push(ids)
        if emitted_chars > len(released):
            raise ValueError(
                f"emitted_chars is {emitted_chars}, but the {len(ids)} generated ids give {len(released)} "
                "final characters"
            )
        return released[emitted_chars:]

    def _decode(self, token: int) -> str:
        if not self._mid_character:
            text = self._text_of(token)
            if text is not None:
                return text
        if self._decoder is None:
            self._decoder = _UTF8("replace")
        decoded = self._decoder.decode(self._pieces.bytes_of(token))
        self._mid_character = bool(self._decoder.getstate()[0])
        return decoded

    def _push_watching(self, ids: Sequence[int]) -> str:
        released = []
        for position, token in enumerate(ids):
            text = self._decode(token)
            if self._protected > 0:
                self._protected -= 1
                released.append(text)
            else:
                released.append(self._watch(text))
                if self.stop_matched:
                    self.excess = len(ids) - position - 1
                    break
        return "".join(released)

    def _watch(self, text: str) -> str:
        """Releases what can be no part of a stop string any more; the first stop to be complete ends it."""
        text = self._held + text
        matches = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            _, start, self.stop_matched = min(matches)
            self._held = ""
            return text[:start]
        keep = min(_beginning(text, stop) for stop in self._stops)
        self._held = text[keep:]
        return text[:keep]


def _beginning(text: str, stop: str) -> int:
    """Where the longest end of `text` that begins `stop` starts; the length of `text` if none does."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return start
        start = text.find(stop[0], start + 1)
    return len(text)
