"""What an engine must know of a sequence that goes on behind output which already exists.

To an engine a resumed sequence is one long prompt. What the request says about its output is therefore
settled before it gets there, in the same way for all engines, so that an answer may change between them.
"""

from __future__ import annotations

import orjson
from xxhash import xxh3_64_intdigest

from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import Generation


def resumed_seed(seed: int, emitted: int) -> int:
    """The seed of a sequence that has `emitted` tokens already: the same wherever it is continued."""
    mixed = xxh3_64_intdigest(emitted.to_bytes(8, "little"), seed)
    return mixed % 0xFFFF_FFFF  # llama.cpp's seeds have 32 bits, and the highest one means: random


def json_schema(generation: Generation) -> str:
    """Empty: none is asked for. Raises FleetError when the grammar cannot be followed from here."""
    schema = generation.sampling.json_schema
    if not schema:
        return ""
    if len(generation.token_ids) > generation.prompt_tokens:
        raise FleetError(
            common_pb2.REASON_RESUME_IMPOSSIBLE,
            "json_schema: the grammar's state cannot be rebuilt behind output that already exists",
            field="json_schema",
        )
    try:
        orjson.loads(schema)
    except orjson.JSONDecodeError as error:
        raise FleetError(
            common_pb2.REASON_INVALID_ARGUMENT, f"json_schema: no JSON: {error}", field="json_schema"
        ) from error
    return schema
