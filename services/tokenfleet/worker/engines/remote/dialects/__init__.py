"""The two services that engine servers offer, behind one face. Both come out of `smg-grpc-proto`."""

from __future__ import annotations

from typing import Literal

from tokenfleet.worker.engines.remote.dialects.base import Dialect


def dialect_named(name: Literal["vllm", "trtllm"]) -> Dialect:
    if name == "vllm":
        from tokenfleet.worker.engines.remote.dialects.vllm import VllmDialect

        return VllmDialect()
    from tokenfleet.worker.engines.remote.dialects.trtllm import TrtllmDialect

    return TrtllmDialect()
