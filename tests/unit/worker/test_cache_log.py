"""The worker's word on its caches: numbered, kept for a while, told whole to those who missed some."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.core.blocks import block_hashes
from tokenfleet.v1 import worker_pb2
from tokenfleet.worker import cache_log
from tokenfleet.worker.cache_log import CacheLog

A, B, C = chain = block_hashes([1, 2, 3], 1)


class Follower:
    """Knows the caches from what a log tells, as a router does."""

    def __init__(self, log: CacheLog) -> None:
        self._log = log
        self._seen = -1
        self.held: dict[str, set[int]] = {}
        self.snapshots = 0

    def catch_up(self) -> None:
        events = self._log.after(self._seen)
        self._seen = self._log.sequence
        if events is None:
            self.snapshots += 1
            self._take(list(self._log.snapshot()))
            return
        for event in events:
            held = self.held.setdefault(event.model, set())
            if event.cleared:
                held.clear()
            held.update(event.stored)
            held.difference_update(event.removed)

    def _take(self, chunks: Sequence[worker_pb2.CacheSnapshot]) -> None:
        self.held.clear()
        for chunk in chunks:
            self.held.setdefault(chunk.model, set()).update(chunk.hashes)
            assert len(chunk.parents) == len(chunk.hashes)
        assert {chunk.sequence for chunk in chunks} <= {self._log.sequence}


def test_changes_are_numbered_and_told_once() -> None:
    told: list[int] = []
    log = CacheLog(lambda: told.append(log.sequence))
    log.stored("m", [A, B], 0)
    log.stored("m", [C], B)
    log.removed("m", [C])
    assert told == [1, 2, 3]
    events = log.after(1)
    assert events is not None
    assert [(event.sequence, list(event.stored), event.stored_parent) for event in events] == [
        (2, [C], B),
        (3, [], 0),
    ]
    assert log.after(3) == []


def test_who_comes_new_or_from_another_life_gets_the_whole() -> None:
    log = CacheLog(lambda: None)
    log.stored("m", [A, B], 0)
    assert log.after(-1) is None
    assert log.after(99) is None
    (chunk,) = log.snapshot()
    assert dict(zip(chunk.hashes, chunk.parents, strict=True)) == {A: 0, B: A}
    assert (chunk.model, chunk.last, chunk.sequence) == ("m", True, 1)


def test_a_large_cache_comes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_log, "HASHES_IN_CHUNK", 4)
    log = CacheLog(lambda: None)
    hashes = block_hashes(range(10), 1)
    log.stored("m", hashes, 0)
    chunks = list(log.snapshot())
    assert [len(chunk.hashes) for chunk in chunks] == [4, 4, 2]
    assert [chunk.last for chunk in chunks] == [False, False, True]


def test_clearing_an_empty_cache_is_no_change() -> None:
    log = CacheLog(lambda: None)
    log.cleared("m")
    assert log.sequence == 0
    log.stored("m", [A], 0)
    log.cleared("m")
    assert log.sequence == 2


Changes = st.lists(
    st.tuples(
        st.sampled_from(["store", "remove", "clear", "catch up"]),
        st.sampled_from(["m", "n"]),
        st.integers(1, 6),
    ),
    max_size=60,
)


@given(Changes)
def test_whoever_follows_knows_the_caches_however_far_it_fell_behind(
    changes: list[tuple[str, str, int]],
) -> None:
    kept, cache_log.EVENTS_KEPT = cache_log.EVENTS_KEPT, 5
    try:
        log = CacheLog(lambda: None)
    finally:
        cache_log.EVENTS_KEPT = kept
    follower = Follower(log)
    held: dict[str, set[int]] = {"m": set(), "n": set()}
    for kind, model, length in changes:
        hashes = block_hashes(range(length), 1)
        if kind == "store":
            log.stored(model, hashes, 0)
            held[model].update(hashes)
        elif kind == "remove":
            log.removed(model, hashes[-1:])
            held[model].difference_update(hashes[-1:])
        elif kind == "clear":
            log.cleared(model)
            held[model].clear()
        else:
            follower.catch_up()
    follower.catch_up()
    assert {model: blocks for model, blocks in follower.held.items() if blocks} == {
        model: blocks for model, blocks in held.items() if blocks
    }
