"""The same split of a text into words, said in the way that is quickest to carry out.

GPT-2's split is a component of its own in a tokenizer.json (`ByteLevel` with `use_regex`), often behind one
that sets every digit apart. `fastokens` carries a split by a plain pattern out about five times as fast
(11 µs instead of 51 for a prompt of 512 characters), so the components are replaced by the one pattern that
they amount to. Two things make the pattern for digits what it is: a digit is a word, with no blank before it;
and all white space before one is a word, since the stretch between two digits ends there.
"""

from __future__ import annotations

from typing import Any

Component = dict[str, Any]

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+"
_GPT2 = _WORDS + r"| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Numbers that the component knows since Unicode 17 and the patterns' \p{N} does not yet.
_DIGIT = "\\p{N}\U00011de0-\U00011de9\U00016ff4-\U00016ff6"
_DIGITS_THEN_GPT2 = rf"{_WORDS}|[{_DIGIT}]| ?[^\s\p{{L}}{_DIGIT}]+|\s+(?=[{_DIGIT}])|\s+(?!\S)|\s+"


def with_quick_split(tokenizer: Component) -> Component:
    """The content of a tokenizer.json with its pre-tokenizer replaced where a quicker equal one is known."""
    match tokenizer.get("pre_tokenizer"):
        case {"type": "Sequence", "pretokenizers": [*components]}:
            pass
        case single:
            components = [single]
    match components:
        case [{"type": "ByteLevel", "add_prefix_space": False} as last] if last.get("use_regex", True):
            pattern = _GPT2
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False} as last,
        ] if last.get("use_regex", True):
            pattern = _DIGITS_THEN_GPT2
        case _:
            return tokenizer
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    quick = {"type": "Sequence", "pretokenizers": [split, {**last, "use_regex": False}]}
    return {**tokenizer, "pre_tokenizer": quick}
