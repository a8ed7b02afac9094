"""Packed arrays of fixed width, from message to message as they lie on the wire.

Protobuf's Python copies a repeated field number by number, 50 ns each: a long prompt's ids would hold up an
event loop for a millisecond at every hop. As bytes they are copied as they are.
"""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.message import Message

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5


@lru_cache(4096)
def packed_field(number: int, size: int) -> bytes:
    """What stands before `size` bytes of a packed field."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(size)


def packed_fields(message: Message) -> dict[int, bytes]:
    """The message's fields of variable length, packed arrays among them, by their numbers."""
    data = message.SerializeToString()
    found: dict[int, bytes] = {}
    position, end = 0, len(data)
    while position < end:
        key, position = _read_varint(data, position)
        kind = key & 7
        if kind == _LENGTH_DELIMITED:
            size, position = _read_varint(data, position)
            found[key >> 3] = data[position : position + size]
            position += size
        elif kind == _VARINT:
            _, position = _read_varint(data, position)
        else:
            position += 8 if kind == _FIXED64 else 4
    return found


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number and where it ends."""
    group = data[position]
    number, shift = group & 0x7F, 7
    while group > 0x7F:
        position += 1
        group = data[position]
        number |= (group & 0x7F) << shift
        shift += 7
    return number, position + 1
