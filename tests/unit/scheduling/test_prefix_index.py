"""The prefix index against a plain dictionary of sets, and within its bound."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfleet.core.blocks import block_hashes
from tokenfleet.core.scheduling.prefix_index import ENTRY_BYTES, PrefixIndex

AMPLE = 1 << 20
REPLICAS = range(4)


def chain(*ids: int) -> list[int]:
    return block_hashes(ids, 1)


def depths(index: PrefixIndex, hashes: Sequence[int]) -> dict[int, int]:
    """Per replica, how many blocks of the prompt it holds."""
    found: dict[int, int] = {}
    for blocks, holders in index.match(hashes):
        found |= dict.fromkeys(holders.members, blocks)
    return found


def test_nobody_holds_what_was_never_stored() -> None:
    index = PrefixIndex(AMPLE)
    assert index.match(chain(1, 2)) == []
    assert index.match([]) == []


def test_each_replica_is_known_to_its_own_depth() -> None:
    index = PrefixIndex(AMPLE)
    prompt = chain(*range(512))
    for replica, blocks in ((0, 100), (1, 300), (2, 300), (3, 512)):
        index.stored(replica, prompt[:blocks])
    assert depths(index, prompt) == {0: 100, 1: 300, 2: 300, 3: 512}
    assert [run.blocks for run in index.match(prompt)] == [100, 300, 512]
    assert depths(index, chain(0, 1, 99)) == {0: 2, 1: 2, 2: 2, 3: 2}


def test_a_matched_prompt_is_extended_by_its_runs() -> None:
    index = PrefixIndex(AMPLE)
    prompt = chain(*range(100))
    index.stored(0, prompt[:40])
    index.stored(1, prompt[:20])
    index.extend(2, prompt, index.match(prompt))
    assert depths(index, prompt) == {0: 40, 1: 20, 2: 100}


def test_removal_is_for_one_replica_only() -> None:
    index = PrefixIndex(AMPLE)
    prompt = chain(1, 2, 3)
    index.stored(0, prompt)
    index.stored(1, prompt)
    index.removed(0, prompt[1:])
    assert depths(index, prompt) == {0: 1, 1: 3}
    index.removed(1, prompt)
    index.removed(0, prompt)
    assert len(index) == 0


def test_a_replica_that_is_gone_leaves_nothing_behind_its_number() -> None:
    index = PrefixIndex(AMPLE)
    prompt = chain(1, 2, 3)
    index.stored(0, prompt)
    index.stored(1, prompt[:2])
    index.forget(0)
    assert depths(index, prompt) == {1: 2}
    index.stored(0, prompt[:1])
    assert depths(index, prompt) == {0: 1, 1: 2}


def test_what_is_asked_for_outlives_what_is_not() -> None:
    index = PrefixIndex(2000 * ENTRY_BYTES)
    hot, cold = chain(*range(100)), chain(*range(1000, 1100))
    index.stored(0, hot)
    index.stored(0, cold)
    for step in range(100):
        index.stored(1, chain(*range(10_000 + 100 * step, 10_100 + 100 * step)))
        assert depths(index, hot) == {0: 100}
    assert depths(index, cold) == {}


@pytest.mark.parametrize("limit_bytes", [ENTRY_BYTES * 40, ENTRY_BYTES * 3000])
def test_the_bound_holds_and_what_it_says_is_what_is_used(limit_bytes: int) -> None:
    index = PrefixIndex(limit_bytes)
    for step in range(100):
        index.stored(step % 3, chain(*range(97 * step, 97 * step + 150)))
        assert index.size_bytes <= limit_bytes + 2 * 64, "two empty dictionaries take their 64 bytes"
    assert len(index) > 0


Steps = st.lists(
    st.tuples(
        st.sampled_from(["stored", "extend", "removed", "forget"]),
        st.sampled_from(REPLICAS),
        st.lists(st.integers(0, 2), min_size=1, max_size=8),
        st.integers(0, 8),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(Steps)
def test_any_history_equals_a_dictionary_of_sets(steps: list[tuple[str, int, list[int], int]]) -> None:
    """Replicas store and remove as engines do: a chain from its root on, leaves before their parents."""
    index = PrefixIndex(AMPLE)
    reference: dict[int, set[tuple[int, ...]]] = {replica: set() for replica in REPLICAS}
    for kind, replica, ids, cut in steps:
        prompt = chain(*ids)
        prefixes = [tuple(ids[: depth + 1]) for depth in range(len(ids))]
        held = reference[replica]
        if kind == "stored":
            index.stored(replica, prompt)
            held.update(prefixes)
        elif kind == "extend":
            index.extend(replica, prompt, index.match(prompt))
            held.update(prefixes)
        elif kind == "removed":
            root = tuple(ids[: max(1, cut)])
            gone = [prefix for prefix in held if prefix[: len(root)] == root]
            index.removed(replica, [chain(*prefix)[-1] for prefix in gone])
            held.difference_update(gone)
        else:
            index.forget(replica)
            held.clear()
        for _, _, asked, _ in steps:
            expected = {
                one: sum(tuple(asked[: depth + 1]) in blocks for depth in range(len(asked)))
                for one, blocks in reference.items()
            }
            assert depths(index, chain(*asked)) == {one: depth for one, depth in expected.items() if depth}
