"""What became of a slow reader's stream is told apart: complete, told why, or cut off."""

import json
import socket
from typing import Any

import pytest

from benchmarks.edges.figures import KEEPING_UP, SLOW, figures_of
from benchmarks.edges.phases import Run, Window
from benchmarks.edges.plan import BUFFER_BYTES, CROWD, Habit, SlowCrowd, shares
from benchmarks.edges.readers import End, Heard, SseReader
from benchmarks.edges.slow_readers import summary
from tests.unit.benchmarks.answers import chunked, event, stream

TEXTS = ["Hel", "lo"]
WHOLE = chunked(stream(TEXTS))
SLOW_EVENT = event([], error={"code": "slow_consumer", "message": "read faster"})


def heard(data: bytes) -> tuple[Heard, bool]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = SseReader(ours, {"model": "m"})
        asked = theirs.recv(65536)
        assert json.loads(asked.partition(b"\r\n\r\n")[2])["stream"] is True
    for byte in data:
        reader.feed(bytes([byte]))
    return reader.heard(), reader.done


@pytest.mark.parametrize(
    ("data", "end", "frames", "done"),
    [
        (WHOLE, End.COMPLETE, 2, True),
        (WHOLE[:-40], End.CUT, 2, False),
        (chunked([*stream(TEXTS)[:2], SLOW_EVENT]), End.TYPED, 1, True),
        (WHOLE[: WHOLE.index(b"lo") - 20], End.CUT, 1, False),
        (WHOLE[:30], End.CUT, 0, False),
    ],
)
def test_how_a_stream_ended(data: bytes, end: End, frames: int, done: bool) -> None:
    one, over = heard(data)
    assert (one.end, one.frames, over) == (end, frames, done)
    assert one.tokens == (2 if end is End.COMPLETE else 0)
    assert one.code == ("slow_consumer" if end is End.TYPED else "")


def test_a_crowd_survives_its_way_to_the_other_process_and_is_complete() -> None:
    crowd = SlowCrowd("h", 1, "m", shares(CROWD))
    assert SlowCrowd.from_json(crowd.to_json()) == crowd
    assert sum(crowd.readers.values()) == CROWD


def window(**values: Any) -> Window:
    usual: dict[str, Any] = {
        "at_s": 0.0,
        "gap_s": [0.05],
        "resident_mb": 70.0,
        "kernel_tcp_mb": 1.0,
        "gateway_share": 0.1,
        "load_core_busy": 0.5,
        "failed": 0,
    }
    return Window(**(usual | values))


def test_the_figures_compare_what_belongs_together() -> None:
    merged = [(Habit.BYTEWISE, "", Heard(End.COMPLETE, frames=10, tokens=100))]
    slow = Run(
        crowd=SLOW,
        alone=[window()],
        beside=[window(gap_s=[0.055], resident_mb=90.0, kernel_tcp_mb=3.0)],
        after=[window(resident_mb=85.0)],
        idle_mb=60.0,
        ends=summary(merged),
        codes={"slow_consumer": 600, "200": 5},
    )
    other = Run(crowd=KEEPING_UP, alone=[window()], beside=[window(resident_mb=88.0)], after=[], idle_mb=60.0)
    figures = figures_of({SLOW: slow, KEEPING_UP: other})
    assert figures["slow_readers_itl_ratio"] == pytest.approx(1.1)
    assert figures["gateway_rss_mb_alone"] == 70.0
    assert figures["gateway_rss_mb_bound"] == pytest.approx(88.0 + CROWD * BUFFER_BYTES / 1e6)
    assert figures["kernel_tcp_mb_beside_slow"] == 2.0
    assert figures["slow_readers_disconnected"] == 600
    assert figures["slow_readers_completed"] == 1
    assert figures["slow_readers_frames_per_token"] == 0.1
