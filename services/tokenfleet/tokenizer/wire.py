"""A prompt's ids and hashes into the message that answers for it, as they lie in memory."""

from __future__ import annotations

import sys
from array import array

from tokenfleet.runtime.packed import packed_field
from tokenfleet.v1 import tokenizer_pb2

_TOKEN_IDS = tokenizer_pb2.EncodeResult.TOKEN_IDS_FIELD_NUMBER
_BLOCK_HASHES = tokenizer_pb2.EncodeResult.BLOCK_HASHES_FIELD_NUMBER


def write_arrays(result: tokenizer_pb2.EncodeResult, ids: array[int], hashes: array[int]) -> None:
    """Appends `ids` (unsigned, 32 bits) to the result's token ids, `hashes` (64 bits) to its block hashes."""
    result.MergeFromString(
        b"".join(
            (
                packed_field(_TOKEN_IDS, 4 * len(ids)),
                _little_endian(ids),
                packed_field(_BLOCK_HASHES, 8 * len(hashes)),
                _little_endian(hashes),
            )
        )
    )


def _little_endian(values: array[int]) -> array[int]:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values
