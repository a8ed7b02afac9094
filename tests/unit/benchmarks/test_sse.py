"""Counting events in raw bytes agrees with parsing them, wherever the bytes are cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.driver.http import ResponseReader
from loadtest.driver.sse import COMPLETION_MARKER, EventCounter
from tests.unit.benchmarks.answers import DONE, chunked, delta, event, stream, usage

# what a text may contain to look like a frame of its own
TRICKY = [" a", '{"content":"', '"content":""', "data: [DONE]\n\n", "\n\n", "日本\ufffd", "\\", " data: {"]


def feed(pieces: list[bytes], *, keep_all: bool = False) -> EventCounter:
    counter = EventCounter(keep_all=keep_all)
    for piece in pieces:
        counter.feed(piece)
    return counter


def test_text_that_looks_like_frames_is_only_text() -> None:
    counter = feed(stream(TRICKY), keep_all=True)
    assert counter.content == len(TRICKY)
    assert counter.events == len(TRICKY) + 4
    assert counter.texts() == TRICKY


def test_cut_at_every_byte_the_counts_are_the_same() -> None:
    whole = b"".join(stream(TRICKY))
    for cut in range(len(whole) + 1):
        counter = feed([whole[:cut], whole[cut:]])
        end = counter.end()
        assert (counter.events, counter.content) == (len(TRICKY) + 4, len(TRICKY))
        assert (end.done, end.completion_tokens, end.finish_reason) == (True, len(TRICKY), "length")


def test_cut_at_every_byte_below_http_the_counts_are_the_same() -> None:
    answer = chunked(stream(TRICKY))
    for cut in range(1, len(answer)):
        counter = EventCounter()
        reader = ResponseReader(counter.feed)
        reader.feed(answer[:cut])
        reader.feed(answer[cut:])
        assert reader.complete
        assert (counter.events, counter.content) == (len(TRICKY) + 4, len(TRICKY))
        assert counter.end().done


@given(st.lists(st.text(min_size=1), min_size=1, max_size=8), st.integers(1, 64))
def test_any_text_in_any_pieces(texts: list[str], size: int) -> None:
    whole = b"".join(stream(texts))
    counter = feed([whole[i : i + size] for i in range(0, len(whole), size)], keep_all=True)
    assert counter.content == len(texts)
    assert counter.texts() == texts


def test_frames_without_text_do_not_count_as_text() -> None:
    counter = feed([delta("", role="assistant"), delta("a"), delta(""), delta("b"), DONE])
    assert (counter.events, counter.content) == (5, 2)


def test_completions_have_their_own_marker() -> None:
    counter = EventCounter(COMPLETION_MARKER, keep_all=True)
    counter.feed(event([{"index": 0, "text": "hello", "finish_reason": None}]))
    counter.feed(event([{"index": 0, "text": "", "finish_reason": "stop"}]))
    assert counter.content == 1
    assert counter.texts() == ["hello"]
    assert counter.end().finish_reason == "stop"


@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_stream_whose_first_token_was_half_a_character_says_so(ascii_only: bool) -> None:
    def frame(text: str) -> bytes:
        value = {"choices": [{"index": 0, "delta": {"content": text}}]}
        return (
            b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only).encode() + b"\n\n"
        )

    broken, well = EventCounter(), EventCounter()
    broken.feed(frame("") + frame("\ufffda") + frame("b"))
    well.feed(frame("") + frame("a") + frame("\ufffd"))
    well.feed(frame("\ufffd"))
    assert broken.begins_broken
    assert not well.begins_broken


def test_an_error_event_is_an_error() -> None:
    end = feed([delta("a"), b'data: {"error":{"message":"the worker is gone","code":503}}\n\n']).end()
    assert (end.done, end.error) == (False, "the worker is gone")


def test_comments_are_no_data() -> None:
    end = feed([b": loading 40 %\n\n", *stream(["a"])]).end()
    assert (end.done, end.completion_tokens) == (True, 1)


def test_a_stream_cut_off_inside_an_event_is_malformed() -> None:
    counter = feed([delta("a")[:-1]])
    with pytest.raises(ValueError, match="inside an event"):
        counter.end()


def test_nothing_may_follow_done() -> None:
    with pytest.raises(ValueError, match=r"behind \[DONE\]"):
        feed([DONE, usage(1)]).end()
