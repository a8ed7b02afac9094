"""Packed arrays are read and written as protobuf would."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.runtime.packed import packed_field, packed_fields
from tokenfleet.v1 import common_pb2, router_pb2, tokenizer_pb2, worker_pb2

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=40)
HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=40)
COUNTS = st.integers(0, 2**32 - 1)


@given(IDS, HASHES, COUNTS, COUNTS)
def test_arrays_are_found_between_other_fields(
    ids: list[int], hashes: list[int], count: int, cached: int
) -> None:
    message = tokenizer_pb2.EncodeResult(
        job_id=2**64 - 1, token_ids=ids, block_hashes=hashes, token_count=count, cached_tokens=cached
    )
    fields = packed_fields(message)
    assert array("I", fields.get(message.TOKEN_IDS_FIELD_NUMBER, b"")).tolist() == ids
    assert array("Q", fields.get(message.BLOCK_HASHES_FIELD_NUMBER, b"")).tolist() == hashes


def test_fields_of_every_kind_are_passed_over() -> None:
    context = common_pb2.RequestContext(request_id="r")
    message = router_pb2.Ask(
        ask_id=1, context=context, model="m", ttft_objective_s=0.5, original_prompt_tokens=300
    )
    assert packed_fields(message) == {2: context.SerializeToString(), 3: b"m"}
    event = worker_pb2.CacheEvent(sequence=1, model="m", stored_parent=2**64 - 1, stored=[5], cleared=True)
    assert packed_fields(event) == {2: b"m", 3: array("Q", [5]).tobytes()}


@pytest.mark.parametrize("count", [0, 1, 31, 32, 4095, 4096, 600_000])
def test_heads_of_every_length(count: int) -> None:
    submit = worker_pb2.Submit()
    head = packed_field(submit.TOKEN_IDS_FIELD_NUMBER, 4 * count)  # a number above 15 takes two bytes
    submit.MergeFromString(head + array("I", range(count)).tobytes())
    assert submit.token_ids == list(range(count))
