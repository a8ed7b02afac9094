"""Whatever the chunks, and wherever a sequence is resumed, the text is that of all ids at once."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.worker.text_assembler import Pieces, TextAssembler

# Whole words, special tokens (no bytes), parts of characters, bytes that no character has.
TOKENS = [
    b"",
    b" the",
    b"st",
    b"op",
    b"\n\n",
    b"s",
    b"END",
    b"E",
    b"N",
    b"D ",
    "é€".encode(),
    b"\xc3",
    b"\xa9",
]
TOKENS += [
    b"\xf0\x9f",
    b"\x98",
    b"\x80",
    b"\xf0",
    b"\x9f\x98\x80",
    b"a\xe2\x82",
    b"\xac!",
    b"\xff",
    b"\xed\xa0",
]
PIECES = Pieces(TOKENS)

ids_of_any_kind = st.lists(st.integers(0, len(TOKENS) - 1), max_size=40)
stop_strings = st.lists(
    st.sampled_from(["stop", "st", "END", "ND E", "\n\n", "€", "😀", "é", "top s"]), max_size=3
)
cuts = st.lists(st.integers(0, 40), max_size=10)


def chunked(ids: list[int], at: list[int]) -> list[list[int]]:
    edges = [0, *sorted(min(cut, len(ids)) for cut in at), len(ids)]
    return [ids[start:end] for start, end in itertools.pairwise(edges)]


def assemble(assembler: TextAssembler, chunks: list[list[int]]) -> str:
    text = ""
    for chunk in chunks:
        text += assembler.push(chunk)
        if assembler.stop_matched:
            return text
    return text + assembler.flush()


def decoded(ids: list[int]) -> str:
    return b"".join(TOKENS[token] for token in ids).decode(errors="replace")


def cut_at_stop(text: str, stops: list[str]) -> str:
    """The definition: read character by character, end at the first stop that becomes complete."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(ids_of_any_kind, cuts)
def test_without_stops_any_chunking_gives_the_decoding_of_all_ids(ids: list[int], at: list[int]) -> None:
    assert assemble(TextAssembler(PIECES), chunked(ids, at)) == decoded(ids)


@given(ids_of_any_kind, stop_strings, cuts)
def test_with_stops_any_chunking_cuts_at_the_first_complete_one(
    ids: list[int], stops: list[str], at: list[int]
) -> None:
    assembler = TextAssembler(PIECES, stops)
    assert assemble(assembler, chunked(ids, at)) == cut_at_stop(decoded(ids), stops)


@given(ids_of_any_kind, stop_strings, st.integers(0, 40), st.integers(0, 1_000), st.integers(0, 12))
def test_a_resume_goes_on_behind_the_last_emitted_character(
    ids: list[int], stops: list[str], after: int, lag: int, min_tokens: int
) -> None:
    whole = assemble(TextAssembler(PIECES, stops, min_tokens), [[token] for token in ids])
    first = TextAssembler(PIECES, stops, min_tokens)
    had = first.push(ids[:after])
    had = had[: max(0, len(had) - lag)]  # the client may lag behind the ids that its gateway holds
    second = TextAssembler(PIECES, stops, min_tokens)
    rest = second.resume(ids[:after], len(had))
    if not second.stop_matched:
        rest += assemble(second, [ids[after:]])
    assert had + rest == whole


@given(ids_of_any_kind, stop_strings)
def test_released_text_is_never_taken_back(ids: list[int], stops: list[str]) -> None:
    assembler, released = TextAssembler(PIECES, stops), ""
    final = cut_at_stop(decoded(ids), stops)
    for token in ids:
        released += assembler.push([token])
        assert final.startswith(released)
        if assembler.stop_matched:
            break


def test_ids_behind_the_stop_are_counted_as_excess() -> None:
    assembler = TextAssembler(PIECES, ["stop"])
    assert assembler.push([1, 2, 3, 1, 1]) == " the"
    assert (assembler.stop_matched, assembler.excess) == ("stop", 2)


def test_a_stop_string_over_token_borders_is_held_back_until_it_is_none() -> None:
    assembler = TextAssembler(PIECES, ["END "])
    assert [assembler.push([token]) for token in (7, 8, 7)] == ["", "", "EN"]
    assert assembler.flush() == "E"


def test_stops_within_the_least_tokens_do_not_count() -> None:
    assembler = TextAssembler(PIECES, ["END"], min_tokens=2)
    assert [assembler.push([token]) for token in (6, 7, 8, 6)] == ["END", "E", "N", ""]
    assert assembler.stop_matched == "END"


def test_text_that_the_ids_do_not_give_is_refused() -> None:
    with pytest.raises(ValueError, match="emitted_chars is 9"):
        TextAssembler(PIECES).resume([1], 9)


def test_a_cut_off_character_becomes_one_replacement_at_the_end_only() -> None:
    assembler = TextAssembler(PIECES)
    assert [assembler.push([token]) for token in (1, 13, 14)] == [" the", "", ""]
    assert assembler.flush() == "\N{REPLACEMENT CHARACTER}"
