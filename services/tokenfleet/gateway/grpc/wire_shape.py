"""What a protobuf request is made of, found out before it is parsed.

Two bytes of a message can make an object of a hundred in memory: eight million empty chat messages fit into
16 MiB, and parsing them stops every stream of the gateway for seconds. The parser has no limit but the size.
So large requests are walked first, field by field without looking inside, which costs about a microsecond
each and ends at the first field too many.
"""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor

from tokenfleet.gateway.http.errors import invalid
from tokenfleet.gateway.http.schemas import MAX_MESSAGES

UNWALKED_BYTES = 64 * 1024
# Everything but messages comes once, or a few times where a client's library splits it.
MAX_FIELDS = MAX_MESSAGES + 100
# A request's parts that are messages themselves, and what they may take.
MAX_PART_BYTES = {"sampling": 256 * 1024, "tokens": 4 * 1024 * 1024}
_NESTED = "chat"


def check_shape(kind: Descriptor, raw: bytes) -> None:
    """Raises FleetError when the message has too many fields, or a part that is too large.

    What is no message at all is left for the parser to find.
    """
    if len(raw) > UNWALKED_BYTES:
        _walk(kind, memoryview(raw), {})


def _walk(kind: Descriptor, raw: memoryview, sizes: dict[str, int]) -> None:
    position = fields = 0
    while position < len(raw):
        fields += 1
        if fields > MAX_FIELDS:
            raise invalid("messages", f"messages: at most {MAX_MESSAGES} are taken, and more were sent")
        tag, position = _varint(raw, position)
        match tag & 7:
            case 0:
                _, position = _varint(raw, position)
            case 1:
                position += 8
            case 5:
                position += 4
            case 2:
                size, position = _varint(raw, position)
                _check_part(kind, tag >> 3, raw[position : position + size], sizes)
                position += size
            case _:
                raise invalid("", f"the request is no valid {kind.name}: it has groups")


def _check_part(kind: Descriptor, number: int, part: memoryview, sizes: dict[str, int]) -> None:
    field = kind.fields_by_number.get(number)
    if field is None:
        return
    limit = MAX_PART_BYTES.get(field.name)
    if limit is not None:
        sizes[field.name] = sizes.get(field.name, 0) + len(part)
        if sizes[field.name] > limit:
            raise invalid(field.name, f"{field.name}: larger than {limit} bytes: send less")
    elif field.name == _NESTED and field.message_type is not None:
        _walk(field.message_type, part, sizes)


def _varint(raw: memoryview, position: int) -> tuple[int, int]:
    """The number and where it ends; behind the message's end all bytes are 0."""
    value = shift = 0
    while position < len(raw) and shift < 70:
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, position
