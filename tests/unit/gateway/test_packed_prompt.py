"""A prompt reaches the router and the worker with the tokenizer's very numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.gateway.packed_prompt import PackedPrompt
from tokenfleet.v1 import router_pb2, tokenizer_pb2, worker_pb2


@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=40),
    st.lists(st.integers(0, 2**64 - 1), max_size=40),
)
def test_the_arrays_arrive_as_they_were_sent(ids: list[int], hashes: list[int]) -> None:
    encoded = tokenizer_pb2.EncodeResult(job_id=1, token_count=len(ids), token_ids=ids, block_hashes=hashes)
    prompt = PackedPrompt.of(tokenizer_pb2.EncodeResult.FromString(encoded.SerializeToString()))
    assert prompt.ids() == ids
    ask = router_pb2.Ask(ask_id=1, max_tokens=3)
    prompt.add_to_ask(ask)
    assert ask == router_pb2.Ask(ask_id=1, max_tokens=3, block_hashes=hashes)
    submit = worker_pb2.Submit(slot=1, max_tokens=3)
    prompt.add_to_submit(submit)
    assert submit == worker_pb2.Submit(slot=1, max_tokens=3, token_ids=ids, block_hashes=hashes)
