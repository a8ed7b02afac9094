"""Sampling parameters in vLLM's words, as the child gets them.

A resumed sequence is prompt and generated ids at once to vLLM, which takes them all for its prompt. What
counts from the first generated token is therefore settled here: the minimum length still to come, the seed,
and the presence and frequency penalties on what was generated, as a bias. (One thing is not as it would have
been: a token that occurs before and behind the break has its presence penalized twice.)
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import Generation
from tokenfleet.worker.engines.resuming import json_schema, resumed_seed

_NAMES = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


def sampling_of(generation: Generation) -> dict[str, Any]:
    """The request's `sampling` and `schema`. Raises FleetError for what cannot be done."""
    sampling = generation.sampling
    emitted = len(generation.token_ids) - generation.prompt_tokens
    told: dict[str, Any] = {name: getattr(sampling, name) for name in _NAMES if _has(sampling, name)}
    request: dict[str, Any] = {"sampling": told}
    if sampling.HasField("seed"):
        told["seed"] = resumed_seed(sampling.seed, emitted)
    if sampling.HasField("logprobs"):
        told["logprobs"] = sampling.logprobs
    if bias := bias_of(generation):
        told["logit_bias"] = bias
    told["ignore_eos"] = sampling.ignore_eos
    told["min_tokens"] = min(generation.max_tokens, max(0, sampling.min_tokens - emitted))
    if sampling.min_tokens:
        told["stop_token_ids"] = list(sampling.stop_token_ids)
    if schema := json_schema(generation):
        request["schema"] = schema
    return request


def bias_of(generation: Generation) -> list[tuple[int, float]]:
    """Asked for, and what penalties on earlier output come to."""
    sampling = generation.sampling
    bias = dict(sampling.logit_bias.items())
    for token, times in Counter(generation.token_ids[generation.prompt_tokens :]).items():
        penalty = sampling.presence_penalty + times * sampling.frequency_penalty
        if penalty:
            bias[token] = bias.get(token, 0.0) - penalty
    return list(bias.items())


def _has(sampling: common_pb2.SamplingParams, name: Any) -> bool:
    return sampling.HasField(name)
