"""Blocks are shared while held, kept while there is room, and counted right whatever happens."""

from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.core.engine_model import PrefixCache


def test_shared_blocks_count_once_and_stay_until_the_last_holder_goes() -> None:
    cache = PrefixCache(10, 16)
    assert cache.reserve((1, 2), 4) == 0
    assert cache.reserve((1, 2), 4) == 2
    assert cache.used == 6
    cache.release((1, 2), 4)
    assert cache.used == 4
    cache.release((1, 2), 4)
    assert cache.used == 0
    assert cache.reserve((1, 2, 3), 3) == 2


def test_the_longest_unused_block_makes_room_and_ends_go_before_starts() -> None:
    cache = PrefixCache(4, 16)
    cache.reserve((1, 2, 3), 3)
    cache.release((1, 2, 3), 3)
    cache.reserve((), 2)
    assert cache.reserve((1, 2, 3), 2) == 2


def test_what_does_not_fit_is_refused_and_leaves_no_trace() -> None:
    cache = PrefixCache(4, 16)
    assert cache.reserve((), 3) == 0
    assert cache.reserve((9,), 2) is None
    assert cache.used == 3
    cache.release((), 3)
    assert cache.reserve((9,), 2) == 0


chains = st.integers(0, 3).flatmap(
    lambda root: st.integers(0, 4).map(lambda n: tuple(root * 10 + i for i in range(n)))
)


@given(st.lists(st.tuples(chains, st.integers(0, 3), st.booleans()), max_size=40))
def test_used_never_exceeds_the_capacity_and_ends_at_zero(
    requests: list[tuple[tuple[int, ...], int, bool]],
) -> None:
    cache = PrefixCache(12, 16)
    held = []
    for hashes, own, release in requests:
        blocks = len(hashes) + own
        if cache.reserve(hashes, blocks) is not None:
            held.append((hashes, blocks))
        assert 0 <= cache.used <= cache.capacity
        if release and held:
            cache.release(*held.pop(0))
    for hashes, blocks in held:
        cache.release(hashes, blocks)
    assert cache.used == 0
