"""What counts as an answer: anything short of the whole, well-formed one is a failure with its reason."""

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.driver.load import Load
from loadtest.driver.session import Session
from loadtest.driver.stats import Snapshot, Tally
from tests.unit.benchmarks.answers import DONE, chunked, counted, delta, stream, usage

LOAD = Load(host="h", port=1, model="m", max_tokens=3)
WHOLE = Load(host="h", port=1, model="m", max_tokens=3, stream=False)
UNKEPT = replace(LOAD, keep_alive=False)


class Wire(asyncio.Transport):
    """A transport that only remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Any] = []
        self.aborted = self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closed = True


class Play:
    """One session whose server is the test."""

    def __init__(self, load: Load = LOAD) -> None:
        self.tally = Tally()
        self.freed: list[Session] = []
        self.lost: list[Session] = []
        self.wire = Wire()
        self.session = Session(load, self.tally, self.freed.append, self.lost.append)
        self.session.connection_made(self.wire)
        self.session.send(b"request", due=0.0)

    def judged(self) -> Snapshot:
        return self.tally.snapshot(0.0)


def test_a_whole_stream_is_a_success() -> None:
    play = Play()
    play.session.data_received(chunked(stream(["a", "b", "c"])))
    counts = play.judged()
    assert (counts.finished, counts.failed, counts.finished_tokens, counts.finished_frames) == (1, 0, 3, 3)
    assert counts.content_frames == 3
    assert len(counts.ttft_s) == 1
    assert play.freed == [play.session]


def test_merged_tokens_show_as_fewer_frames() -> None:
    play = Play()
    play.session.data_received(chunked(stream(["ab", "c"], tokens=3)))
    counts = play.judged()
    assert (counts.finished_tokens, counts.finished_frames) == (3, 2)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (chunked(stream(["a", "b"])), "2 tokens of 3"),
        (chunked(stream(["a", "b", "c"], finish="stop")), "finish_reason 'stop'"),
        (chunked(stream(["a", "b", "c"])[:-1]), "without [DONE]"),
        (chunked([delta("a"), DONE]), "no usage"),
        (chunked([delta(finish="length"), usage(3), DONE]), "without text"),
        (chunked([delta("a"), b'data: {"error":{"message":"gone"}}\n\n']), "error event: gone"),
        (chunked([b"data: {broken\n\n"]), "malformed answer"),
        (counted(429, {"error": {"message": "queue full"}}), "HTTP 429: queue full"),
        (counted(502, "no json error"), "HTTP 502"),
        (counted(200, {"choices": []}), "instead of an event stream"),
    ],
)
def test_anything_less_is_a_failure(answer: bytes, reason: str) -> None:
    play = Play()
    play.session.data_received(answer)
    counts = play.judged()
    assert (counts.finished, counts.failed) == (0, 1)
    (said,) = counts.errors
    assert reason in said
    assert play.freed == [play.session], "the connection is still good"


def test_a_server_may_say_why_it_ended_beside_its_last_text() -> None:
    untold = chunked([delta("a"), delta("b"), delta("c"), usage(3), DONE])
    for lenient, verdict in ((False, (0, 1)), (True, (1, 0))):
        play = Play(replace(LOAD, untold_finish=lenient))
        play.session.data_received(untold)
        counts = play.judged()
        assert (counts.finished, counts.failed) == verdict
    play = Play(replace(LOAD, untold_finish=True))
    play.session.data_received(chunked(stream(["a", "b", "c"], finish="stop")))
    assert play.judged().failed == 1


def test_after_bytes_that_make_no_sense_the_connection_goes() -> None:
    play = Play()
    play.session.data_received(b"SSH-2.0-OpenSSH\r\n\r\n")
    assert play.judged().failed == 1
    assert play.wire.aborted
    assert not play.freed


def test_bytes_that_nobody_asked_for_are_a_failure() -> None:
    play = Play()
    play.session.data_received(chunked(stream(["a", "b", "c"])))
    play.session.data_received(b"HTTP/1.1 200 OK\r\n")
    assert play.judged().errors == {"bytes that no request asked for": 1}
    assert play.wire.aborted


def test_a_connection_lost_in_an_answer_is_a_failure_and_one_lost_in_between_is_not() -> None:
    cut, idle = Play(), Play()
    cut.session.data_received(chunked(stream(["a", "b", "c"]))[:-30])
    idle.session.data_received(chunked(stream(["a", "b", "c"])))
    for play in (cut, idle):
        play.session.connection_lost(None)
        assert play.lost == [play.session]
    assert cut.judged().errors == {"connection lost: closed by the server": 1}
    assert idle.judged().failed == 0


def test_silence_is_a_failure_only_after_its_time() -> None:
    play = Play()
    play.session.give_up_if_silent(LOAD.silence_s)
    assert play.session.busy
    play.session.give_up_if_silent(LOAD.silence_s + 1)
    assert play.judged().errors == {"silent for 30 s": 1}
    assert play.wire.aborted


@pytest.mark.parametrize(("load", "head"), [(LOAD, b"Connection: close\r\n"), (UNKEPT, b"")])
def test_where_a_connection_is_not_kept_it_gets_no_further_request(load: Load, head: bytes) -> None:
    answer = chunked(stream(["a", "b", "c"])).replace(b"OK\r\n", b"OK\r\n" + head)
    play = Play(load)
    play.session.data_received(answer)
    assert play.judged().finished == 1
    assert play.wire.closed
    assert not play.freed


def test_a_whole_answer_is_judged_by_its_usage() -> None:
    choice = {"finish_reason": "length", "message": {"content": "abc"}}
    well, short = Play(WHOLE), Play(WHOLE)
    well.session.data_received(counted(200, {"choices": [choice], "usage": {"completion_tokens": 3}}))
    short.session.data_received(counted(200, {"choices": [choice], "usage": {"completion_tokens": 2}}))
    assert well.judged().finished_tokens == 3
    assert short.judged().failed == 1


def test_the_first_token_of_a_stream_that_begins_with_half_a_character_is_not_timed() -> None:
    play = Play()
    play.session.data_received(chunked(stream(["\ufffda", "b"], tokens=3)))
    counts = play.judged()
    assert (counts.finished, counts.ttft_s, len(counts.itl_s)) == (1, [], 1)


TRICKY = ["a", "\n\n", '{"content":""', "\n\n\r\n", "data: [DONE]\n\n", "b"]


@given(st.data())
def test_reads_cut_anywhere_are_counted_alike_on_the_short_way_and_the_long(data: st.DataObject) -> None:
    answer = chunked(stream(TRICKY))
    # half of the cuts lie between chunks, where the short way begins
    borders = [match.end() for match in re.finditer(rb"\n\n\r\n", answer)]
    places = st.one_of(st.sampled_from(borders[:-1]), st.integers(1, len(answer) - 1))
    cuts = sorted(data.draw(st.sets(places, max_size=12)))
    play = Play(Load(host="h", port=1, model="m", max_tokens=len(TRICKY)))
    for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True):
        play.session.data_received(answer[start:end])
    counts = play.judged()
    assert (counts.finished, counts.failed) == (1, 0), counts.errors
    assert counts.content_frames == counts.finished_frames == len(TRICKY)
    assert len(counts.ttft_s) == 1


def test_the_next_answer_on_a_connection_starts_from_nothing() -> None:
    play = Play()
    pieces = chunked(stream(["a", "b", "c"])).split(b"\n\n\r\n")
    for _ in range(2):
        for piece in pieces[:-1]:
            play.session.data_received(piece + b"\n\n\r\n")
        play.session.data_received(pieces[-1])
        play.session.send(b"request", due=0.0)
    counts = play.judged()
    assert (counts.finished, counts.finished_frames, counts.content_frames) == (2, 6, 6)


@pytest.mark.parametrize(("every_gap", "gaps"), [(True, 2), (False, 0)])
def test_the_time_before_each_token_is_kept_where_asked_for_be_it_without_text(
    every_gap: bool, gaps: int
) -> None:
    play = Play(replace(LOAD, every_gap=every_gap))
    head, _, rest = chunked(stream(["a", "", "c"])).partition(b"\r\n\r\n")
    pieces = [head + b"\r\n\r\n", *(frame + b"\n\n\r\n" for frame in rest.split(b"\n\n\r\n"))]
    for piece in pieces[:5]:
        play.session.data_received(piece)
    play.session.data_received(b"".join(pieces[5:])[: -len(b"\n\n\r\n")])
    counts = play.judged()
    assert (counts.finished, counts.failed) == (1, 0)
    assert len(counts.gap_s) == gaps
