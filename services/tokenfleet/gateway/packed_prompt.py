"""A tokenized prompt as the gateway keeps it: the tokenizer's arrays, for the router and the workers."""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass

from tokenfleet.runtime.packed import packed_field, packed_fields
from tokenfleet.v1 import router_pb2, tokenizer_pb2, worker_pb2

_ENCODED, _ASK, _SUBMIT = tokenizer_pb2.EncodeResult, router_pb2.Ask, worker_pb2.Submit


@dataclass(slots=True)
class PackedPrompt:
    """Arrays of numbers, packed: unsigned, of 32 bits, and the hashes of 64."""

    token_ids: bytes = b""
    block_hashes: bytes = b""

    @classmethod
    def of(cls, encoded: tokenizer_pb2.EncodeResult) -> PackedPrompt:
        fields = packed_fields(encoded)
        return cls(
            fields.get(_ENCODED.TOKEN_IDS_FIELD_NUMBER, b""),
            fields.get(_ENCODED.BLOCK_HASHES_FIELD_NUMBER, b""),
        )

    def ids(self) -> list[int]:
        ids = array("I", self.token_ids)
        if sys.byteorder == "big":
            ids.byteswap()
        return ids.tolist()

    def add_to_ask(self, ask: router_pb2.Ask) -> None:
        """The hashes of its blocks."""
        hashes = self.block_hashes
        ask.MergeFromString(packed_field(_ASK.BLOCK_HASHES_FIELD_NUMBER, len(hashes)) + hashes)

    def add_to_submit(self, submit: worker_pb2.Submit) -> None:
        ids, hashes = self.token_ids, self.block_hashes
        submit.MergeFromString(
            b"".join(
                (
                    packed_field(_SUBMIT.TOKEN_IDS_FIELD_NUMBER, len(ids)),
                    ids,
                    packed_field(_SUBMIT.BLOCK_HASHES_FIELD_NUMBER, len(hashes)),
                    hashes,
                )
            )
        )
