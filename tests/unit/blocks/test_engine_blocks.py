import random
from collections.abc import Sequence

import pytest

from tokenfleet.core.blocks import block_hashes
from tokenfleet.core.engine_blocks import EngineBlocks

IDS = list(range(1000, 1400))


class Index:
    """What a router believes."""

    def __init__(self) -> None:
        self.parents: dict[int, int] = {}

    def cache_stored(self, hashes: Sequence[int], parent: int) -> None:
        for block in hashes:
            assert block not in self.parents, "told twice"
            self.parents[block] = parent
            parent = block

    def cache_removed(self, hashes: Sequence[int]) -> None:
        for block in hashes:
            del self.parents[block]


def chain(size: int, ids: Sequence[int] = IDS) -> list[tuple[int, int | None, Sequence[int]]]:
    """Full blocks of an engine that names them by their position and last id."""
    starts = range(0, len(ids) // size * size, size)
    names = [hash(tuple(ids[: start + size])) for start in starts]
    return [
        (name, names[index - 1] if index else None, ids[start : start + size])
        for index, (name, start) in enumerate(zip(names, starts, strict=True))
    ]


def whole(canonical: int, cached: set[int], engine: int) -> list[int]:
    """The canonical blocks of IDS of which every id lies in a cached engine block."""
    hashes = block_hashes(IDS, canonical)
    covered = [(index * canonical, (index + 1) * canonical) for index in range(len(hashes))]
    return [
        block
        for block, (start, end) in zip(hashes, covered, strict=True)
        if all(at // engine in cached for at in range(start, end))
    ]


@pytest.mark.parametrize("canonical", [16, 32, 24])
@pytest.mark.parametrize("engine", [16, 128, 32, 8, 7, 40])
def test_chains_of_any_block_size_become_canonical(canonical: int, engine: int) -> None:
    index = Index()
    blocks = EngineBlocks(canonical, index)
    events = chain(engine)
    for event in events:
        blocks.stored(*event)
    expected = block_hashes(IDS[: len(events) * engine], canonical)
    assert list(index.parents) == expected
    assert list(index.parents.values()) == [0, *expected[:-1]]


@pytest.mark.parametrize(("canonical", "engine"), [(16, 16), (16, 128), (32, 8), (24, 40), (16, 7)])
def test_a_block_is_cached_while_all_its_ids_are(canonical: int, engine: int) -> None:
    events = chain(engine)
    for seed in range(20):
        order = list(range(len(events)))
        random.Random(seed).shuffle(order)
        index = Index()
        blocks = EngineBlocks(canonical, index)
        for event in events:
            blocks.stored(*event)
        cached = set(order)
        for at in order:
            blocks.removed([events[at][0]])
            cached.remove(at)
            assert set(index.parents) == set(whole(canonical, cached, engine))
        assert len(blocks) == 0


def test_what_follows_an_unknown_block_is_left_out_and_counted() -> None:
    index = Index()
    blocks = EngineBlocks(16, index)
    first, second, third, *_ = chain(16)
    blocks.stored(*second)
    blocks.stored(*first)
    blocks.stored(*third)
    assert list(index.parents) == block_hashes(IDS[:16], 16)
    assert blocks.untraceable == 2


def test_a_block_that_the_engine_keeps_twice_goes_with_its_last_copy() -> None:
    index = Index()
    blocks = EngineBlocks(16, index)
    (name, parent, ids), *_ = chain(16)
    blocks.stored(name, parent, ids)
    blocks.stored(name, parent, ids)
    blocks.removed([name])
    assert len(index.parents) == 1
    blocks.removed([name, name, 77])
    assert not index.parents


def test_a_partial_block_and_the_full_one_that_took_its_place_share_what_they_mean() -> None:
    index = Index()
    blocks = EngineBlocks(16, index)
    blocks.stored(1, None, IDS[:20])
    blocks.stored(2, None, IDS[:32])
    assert list(index.parents) == block_hashes(IDS[:32], 16)
    blocks.removed([1])
    assert list(index.parents) == block_hashes(IDS[:32], 16)
    blocks.removed([2])
    assert not index.parents


def test_a_removed_block_comes_back_behind_its_parent() -> None:
    index = Index()
    blocks = EngineBlocks(16, index)
    for event in chain(32):
        blocks.stored(*event)
    first, second, *_ = chain(32)
    blocks.removed([first[0]])
    blocks.stored(*first)
    blocks.removed([second[0]])
    blocks.stored(*second)
    assert set(index.parents) == set(block_hashes(IDS[:384], 16))


def test_branches_are_kept_apart() -> None:
    index = Index()
    blocks = EngineBlocks(16, index)
    other = [*IDS[:40], *range(2000, 2056)]
    for event in chain(24, IDS[:96]) + chain(24, other):
        blocks.stored(*event)
    assert set(index.parents) == set(block_hashes(IDS[:96], 16)) | set(block_hashes(other, 16))
    blocks.removed([event[0] for event in chain(24, other)[1:]])
    assert set(index.parents) == set(block_hashes(IDS[:96], 16))


def test_cleared_means_nothing_is_known() -> None:
    index = Index()
    blocks = EngineBlocks(16, index)
    for event in chain(16):
        blocks.stored(*event)
    blocks.cleared()
    assert not index.parents
    assert len(blocks) == 0
