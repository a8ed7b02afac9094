"""A sequence in TensorRT-LLM's words, as the child gets it.

A resumed sequence is a prompt to TensorRT-LLM, generated ids and all; so what is left of `min_tokens` and the
seed of what follows are settled here. Presence and frequency penalties begin anew behind the break.
"""

from __future__ import annotations

from typing import Any

from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import Generation
from tokenfleet.worker.engines.resuming import json_schema, resumed_seed

_NAMES = ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def request_of(generation: Generation) -> dict[str, Any]:
    """`sampling` and `schema`. Raises FleetError for what cannot be done."""
    sampling = generation.sampling
    emitted = len(generation.token_ids) - generation.prompt_tokens
    if sampling.logit_bias:
        raise FleetError(
            common_pb2.REASON_UNSUPPORTED,
            "logit_bias: engine trtllm takes one number for each id of the vocabulary or none",
            field="logit_bias",
        )
    told: dict[str, Any] = {name: getattr(sampling, name) for name in _NAMES if _has(sampling, name)}
    told.setdefault("top_p", 1.0)  # TensorRT-LLM's own default is not neutral on each of its backends
    if sampling.HasField("temperature") and sampling.temperature == 0:
        told["top_k"] = 1  # its temperatures are above 0
    else:
        told["temperature"] = sampling.temperature if sampling.HasField("temperature") else 1.0
        if sampling.top_k:
            told["top_k"] = sampling.top_k
    if sampling.HasField("seed"):
        told["seed"] = resumed_seed(sampling.seed, emitted)
    if sampling.HasField("logprobs"):
        told["logprobs"] = sampling.logprobs
    if least := max(0, sampling.min_tokens - emitted):
        told["min_tokens"] = min(generation.max_tokens, least)
    told["ignore_eos"] = sampling.ignore_eos
    request: dict[str, Any] = {"sampling": told}
    if schema := json_schema(generation):
        request["schema"] = schema
    return request


def _has(sampling: common_pb2.SamplingParams, name: Any) -> bool:
    return sampling.HasField(name)
