from array import array

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.core.blocks import block_hashes

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=120)
SIZES = st.integers(1, 40)


@given(IDS, SIZES)
def test_only_full_blocks_have_a_hash(ids: list[int], size: int) -> None:
    assert len(block_hashes(ids, size)) == len(ids) // size


@given(IDS, IDS, IDS, SIZES)
def test_equal_hashes_mean_equal_prefixes(
    shared: list[int], one: list[int], two: list[int], size: int
) -> None:
    first, second = shared + one, shared + two
    hashes = zip(block_hashes(first, size), block_hashes(second, size), strict=False)
    for index, (left, right) in enumerate(hashes):
        end = (index + 1) * size
        assert (left == right) == (first[:end] == second[:end])


@given(st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=40), st.text(min_size=1))
def test_a_salt_shares_nothing_with_no_salt(ids: list[int], salt: str) -> None:
    assert set(block_hashes(ids, 4, salt)).isdisjoint(block_hashes(ids, 4))
    assert block_hashes(ids, 4, salt) == block_hashes(ids, 4, salt)


def test_order_matters_within_and_between_blocks() -> None:
    assert block_hashes([1, 2], 2) != block_hashes([2, 1], 2)
    swapped = block_hashes([3, 4, 1, 2], 2)
    assert set(block_hashes([1, 2, 3, 4], 2)).isdisjoint(swapped)


@given(IDS, SIZES)
def test_packed_and_listed_ids_are_the_same(ids: list[int], size: int) -> None:
    assert block_hashes(array("I", ids), size) == block_hashes(ids, size)


def test_the_definition_holds_on_every_machine() -> None:
    """Other programs compute these hashes too: little-endian words, the parent as the seed."""
    first = xxhash.xxh3_64_intdigest(b"\x01\0\0\0\x02\0\0\0", 0)
    second = xxhash.xxh3_64_intdigest(b"\x03\0\0\0\xff\xff\xff\xff", first)
    assert block_hashes([1, 2, 3, 2**32 - 1, 5], 2) == [first, second]
    root = xxhash.xxh3_64_intdigest(b"tenant")
    assert block_hashes([1, 2], 2, "tenant") == [xxhash.xxh3_64_intdigest(b"\x01\0\0\0\x02\0\0\0", root)]


def test_a_block_needs_a_size() -> None:
    with pytest.raises(ValueError, match="block_size"):
        block_hashes([1], 0)
