"""Sampling parameters in llama.cpp's words.

llama.cpp's own defaults (temperature 0.8, top_k 40, …) never apply: what the caller leaves out is neutral.
The samplers run in the order that other servers have, the temperature before the truncations.
"""

from __future__ import annotations

from typing import Any

import orjson

from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import Generation
from tokenfleet.worker.engines.resuming import json_schema, resumed_seed

_SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "min_p"]
# The likeliest token and nothing else to draw from: with a temperature of 0 alone llama.cpp would still
# compute the probability of every token in the vocabulary.
_GREEDY = {"samplers": ["penalties", "top_k"], "top_k": 1}
_LAST_FIELDS = ["stop", "stop_type", "tokens_predicted", "timings"]


def check_supported(generation: Generation) -> None:
    """Raises FleetError for what llama.cpp cannot do."""
    json_schema(generation)


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
    if body["temperature"] == 0:
        body |= _GREEDY
    if sampling.HasField("seed"):
        emitted = len(generation.token_ids) - generation.prompt_tokens
        body["seed"] = resumed_seed(sampling.seed, emitted)
    if sampling.HasField("logprobs"):
        body["n_probs"] = max(1, sampling.logprobs)
    if sampling.logit_bias:
        body["logit_bias"] = [[token, bias] for token, bias in sampling.logit_bias.items()]
    if schema := json_schema(generation):
        body["json_schema"] = orjson.Fragment(schema)
    return orjson.dumps(body)


def _or(sampling: common_pb2.SamplingParams, name: Any, default: float) -> float:
    value: float = getattr(sampling, name) if sampling.HasField(name) else default
    return value
