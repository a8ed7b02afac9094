"""Names for prefixes of token ids: the chained hashes of their blocks.

Engines keep their KV cache in blocks of a fixed number of tokens, and a block can be reused only behind the
same predecessors. So the hash of a block covers its own ids and, through the seed, everything before it: two
prompts share their first k hashes if and only if they share their first k blocks. A salt changes the root,
and with it every hash, so that tenants or adapters that must not share a cache never do.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

_BYTES_PER_ID = 4


def block_hashes(token_ids: Sequence[int], block_size: int, salt: str = "") -> list[int]:
    """64-bit hashes of the full blocks, in order; what is left over at the end has none."""
    return packed_hashes(token_ids, block_size, salt).tolist()


def packed_hashes(
    token_ids: Sequence[int], block_size: int, salt: str = "", known: array[int] | None = None
) -> array[int]:
    """The hashes as unsigned 64-bit numbers.

    `known` are those of the first blocks, where the caller has them; they are part of the answer.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1 token, got {block_size}")
    packed = _little_endian(token_ids)
    width = block_size * _BYTES_PER_ID
    hashes = known[:] if known else array("Q")
    root = xxh3_64_intdigest(salt.encode()) if salt else 0
    parent = hashes[-1] if hashes else root
    for end in range(width * (len(hashes) + 1), len(packed) + 1, width):
        parent = xxh3_64_intdigest(packed[end - width : end], parent)
        hashes.append(parent)
    return hashes


def hashes_behind(parent: int, token_ids: Sequence[int], block_size: int) -> list[int]:
    """Hashes of the full blocks of ids that follow the block `parent`; 0 is the root without a salt."""
    packed = _little_endian(token_ids)
    width = block_size * _BYTES_PER_ID
    hashes = []
    for end in range(width, len(packed) + 1, width):
        parent = xxh3_64_intdigest(packed[end - width : end], parent)
        hashes.append(parent)
    return hashes


def _little_endian(token_ids: Sequence[int]) -> bytes:
    """Four bytes an id, alike on every machine. Ids that are packed already cost next to nothing."""
    if not isinstance(token_ids, array) or token_ids.typecode != "I":
        token_ids = array("I", token_ids)
    if sys.byteorder == "big":
        token_ids = token_ids[:]
        token_ids.byteswap()
    return token_ids.tobytes()
