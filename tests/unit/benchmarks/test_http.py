"""The driver reads answers at whatever borders they arrive, and refuses what is no answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.driver.http import ProtocolError, ResponseReader
from tests.unit.benchmarks.answers import chunked, counted


def read(pieces: list[bytes]) -> tuple[ResponseReader, bytes]:
    body: list[bytes] = []
    reader = ResponseReader(body.append)
    for piece in pieces:
        assert not reader.complete, "complete before the last byte"
        reader.feed(piece)
    return reader, b"".join(body)


@pytest.mark.parametrize(
    "answer", [chunked([b"one\n\n", b"two", b"x" * 300]), counted(429, {"error": "busy"})]
)
def test_two_reads_split_anywhere_give_the_same_answer(answer: bytes) -> None:
    whole, body = read([answer])
    assert whole.complete
    for cut in range(1, len(answer)):
        split, same = read([answer[:cut], answer[cut:]])
        assert (split.complete, split.status, split.headers, same) == (
            *(True, whole.status, whole.headers),
            body,
        )


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.data())
def test_any_chunks_in_any_reads(chunks: list[bytes], data: st.DataObject) -> None:
    answer = chunked(chunks)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(answer) - 1), max_size=8)))
    pieces = [answer[i:j] for i, j in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    reader, body = read(pieces)
    assert reader.complete
    assert body == b"".join(chunks)


def test_an_empty_body_ends_with_its_head() -> None:
    reader, body = read([b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"])
    assert (reader.complete, reader.status, body) == (True, 204, b"")


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "neither content-length nor chunks"),
        (chunked([b"a"]).replace(b"1\r\na", b"zz\r\na"), "no chunk size"),
        (chunked([b"abc"]).replace(b"3\r\nabc", b"2\r\nabc"), "longer than its size"),
        (chunked([b"a"]) + b"HTTP/1.1 200 OK", "behind the end"),
        (counted(200, {}) + b"x", "behind the end"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000, "head over"),
    ],
)
def test_what_is_no_answer_is_refused(answer: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        read([answer])
