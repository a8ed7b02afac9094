"""Arrays written as they lie in memory are what protobuf would have written."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.tokenizer.wire import write_arrays
from tokenfleet.v1 import tokenizer_pb2

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=40)
HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=40)


@given(IDS, HASHES, st.integers(0, 2**64 - 1))
def test_written_arrays_are_the_messages(ids: list[int], hashes: list[int], job_id: int) -> None:
    result = tokenizer_pb2.EncodeResult(job_id=job_id)
    write_arrays(result, array("I", ids), array("Q", hashes))
    expected = tokenizer_pb2.EncodeResult(job_id=job_id, token_ids=ids, block_hashes=hashes)
    assert result == expected
    assert result.SerializeToString() == expected.SerializeToString()


def test_lengths_of_every_width() -> None:
    for count in (0, 1, 31, 32, 4095, 4096, 600_000):
        result = tokenizer_pb2.EncodeResult()
        write_arrays(result, array("I", range(count)), array("Q", range(count)))
        assert result.token_ids == list(range(count))
        assert result.block_hashes == list(range(count))
