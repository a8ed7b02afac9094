"""Sampling parameters in llama.cpp's words.

llama.cpp's own defaults (temperature 0.8, top_k 40, …) never apply: what the caller leaves out is neutral.
The samplers run in the order that other servers have, the temperature before the truncations.
"""

from __future__ import annotations

from typing import Any

import orjson
from xxhash import xxh3_64_intdigest

from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import Generation

_SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "min_p"]
_LAST_FIELDS = ["stop", "stop_type", "tokens_predicted", "timings"]


def check_supported(generation: Generation) -> None:
    """Raises FleetError for what llama.cpp cannot do."""
    if generation.sampling.json_schema:
        _schema(generation)


def completion_body(generation: Generation) -> bytes:
    """The body of the request. Raises FleetError where `check_supported` does."""
    sampling = generation.sampling
    body: dict[str, Any] = {
        "prompt": list(generation.token_ids),
        "n_predict": generation.max_tokens,
        "stream": True,
        "return_tokens": True,
        "return_progress": True,
        "cache_prompt": True,
        "response_fields": _LAST_FIELDS,
        "ignore_eos": sampling.ignore_eos,
        "samplers": _SAMPLERS,
        "temperature": _or(sampling, "temperature", 1.0),
        "top_p": _or(sampling, "top_p", 1.0),
        "top_k": _or(sampling, "top_k", 0),
        "min_p": _or(sampling, "min_p", 0.0),
        "repeat_penalty": _or(sampling, "repetition_penalty", 1.0),
        "presence_penalty": _or(sampling, "presence_penalty", 0.0),
        "frequency_penalty": _or(sampling, "frequency_penalty", 0.0),
        "repeat_last_n": len(generation.token_ids) + generation.max_tokens,
    }
    if sampling.HasField("seed"):
        emitted = len(generation.token_ids) - generation.prompt_tokens
        body["seed"] = resumed_seed(sampling.seed, emitted)
    if sampling.HasField("logprobs"):
        body["n_probs"] = max(1, sampling.logprobs)
    if sampling.logit_bias:
        body["logit_bias"] = [[token, bias] for token, bias in sampling.logit_bias.items()]
    if sampling.json_schema:
        body["json_schema"] = _schema(generation)
    return orjson.dumps(body)


def resumed_seed(seed: int, emitted: int) -> int:
    """The seed of a sequence that has `emitted` tokens already: the same wherever it is continued."""
    mixed = xxh3_64_intdigest(emitted.to_bytes(8, "little"), seed)
    return mixed % 0xFFFF_FFFF  # llama.cpp's seeds have 32 bits, and the highest one means: random


def _schema(generation: Generation) -> Any:
    if len(generation.token_ids) > generation.prompt_tokens:
        raise FleetError(
            common_pb2.REASON_RESUME_IMPOSSIBLE,
            "json_schema: the grammar's state cannot be rebuilt behind output that already exists",
            field="json_schema",
        )
    try:
        return orjson.loads(generation.sampling.json_schema)
    except orjson.JSONDecodeError as error:
        raise FleetError(
            common_pb2.REASON_INVALID_ARGUMENT, f"json_schema: no JSON: {error}", field="json_schema"
        ) from error


def _or(sampling: common_pb2.SamplingParams, name: Any, default: float) -> float:
    value: float = getattr(sampling, name) if sampling.HasField(name) else default
    return value
