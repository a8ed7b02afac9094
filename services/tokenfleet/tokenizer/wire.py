"""Arrays of numbers into a message as they lie in memory.

Protobuf keeps a packed array of fixed width just as an array does, so a long prompt's ids need not become
Python numbers, one by one, on their way out.
"""

from __future__ import annotations

import sys
from array import array

from tokenfleet.v1 import tokenizer_pb2

_LENGTH_DELIMITED = 2
_TOKEN_IDS = bytes((tokenizer_pb2.EncodeResult.TOKEN_IDS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED,))
_BLOCK_HASHES = bytes((tokenizer_pb2.EncodeResult.BLOCK_HASHES_FIELD_NUMBER << 3 | _LENGTH_DELIMITED,))


def write_arrays(result: tokenizer_pb2.EncodeResult, ids: array[int], hashes: array[int]) -> None:
    """Appends `ids` (unsigned, 32 bits) to the result's token ids, `hashes` (64 bits) to its block hashes."""
    result.MergeFromString(b"".join((*_field(_TOKEN_IDS, ids), *_field(_BLOCK_HASHES, hashes))))


def _field(tag: bytes, values: array[int]) -> tuple[bytes, array[int]]:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return tag + _varint(len(values) * values.itemsize), values


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
