"""A TensorRT-LLM that has the names of `api.json` and no other, and counts: after n comes n + 1.

Before 100, 200, … an answer ends by itself, with the end token. A prompt's first id may ask for trouble.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import tokenfleet.worker.engines.trtllm

API = json.loads(Path(tokenfleet.worker.engines.trtllm.__file__).with_name("api.json").read_text())
END = 2
REFUSE, BREAK, CRASH = 13, 14, 15
PER_BLOCK = 32
BLOCKS = 100

__version__ = API["version"]


def accept(name: str, given: dict[str, Any]) -> None:
    for parameter in given:
        if parameter not in API["calls"][name]:
            raise ValueError(f"{name.removesuffix('.__init__')} got invalid argument: {parameter}")


class _Given:
    """An object of parameters."""

    def __init__(self, **given: Any) -> None:
        accept(f"{type(self).__name__}.__init__", given)
        self._given = given


class SamplingParams(_Given):
    pass


class KvCacheConfig(_Given):
    pass


class GuidedDecodingParams(_Given):
    pass


class Logprob:
    __slots__ = tuple(API["reads"]["Logprob"])

    def __init__(self, logprob: float) -> None:
        self.logprob = logprob


class CompletionOutput:
    __slots__ = tuple(API["reads"]["CompletionOutput"])

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, Logprob]] = []
        self.finish_reason: str | None = None


class RequestOutput:
    """What `generate_async` answers: the same object again and again, as it grows."""

    def __init__(self, prompt: list[int], sampling: dict[str, Any]) -> None:
        self._prompt = prompt
        self._sampling = sampling
        self._aborted = False
        self.outputs = [CompletionOutput()]
        self.finished = False

    def abort(self) -> None:
        self._aborted = True

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        completion = self.outputs[0]
        last = self._prompt[-1]
        while completion.finish_reason is None:
            await asyncio.sleep(0.001)
            if self._prompt[0] == BREAK and len(completion.token_ids) == 3:
                raise RuntimeError("the request cannot go on")
            if self._prompt[0] == CRASH and len(completion.token_ids) == 3:
                os.abort()
            last += 1
            ends = last % 100 == 0 and not self._sampling["ignore_eos"]
            completion.token_ids.append(END if ends else last)
            if "logprobs" in self._sampling:
                completion.logprobs.append({completion.token_ids[-1]: Logprob(-0.5), 7: Logprob(-2.0)})
            if self._aborted:
                completion.finish_reason = "cancelled"
            elif ends:
                completion.finish_reason = "stop"
            elif len(completion.token_ids) == self._sampling["max_tokens"]:
                completion.finish_reason = "length"
            self.finished = completion.finish_reason is not None
            yield self


class LLM:
    def __init__(self, **given: Any) -> None:
        accept("LLM.__init__", given)
        cache = given["kv_cache_config"]._given
        if given.get("dtype") == "float32" and cache.get("free_gpu_memory_fraction", 0.9) > 0.8:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self._publishes = cache["enable_block_reuse"] and cache["event_buffer_max_size"] > 0
        self._events: list[dict[str, Any]] = []
        self._numbered = 0
        self._cached: set[int] = set()
        self._used = False

    def generate_async(self, inputs: dict[str, Any], **given: Any) -> RequestOutput:
        accept("LLM.generate_async", given)
        assert given["streaming"]
        prompt = inputs["prompt_token_ids"]
        if prompt[0] == REFUSE:
            raise ValueError("13 brings bad luck")
        self._used = True
        self._store(prompt)
        return RequestOutput(prompt, given["sampling_params"]._given)

    async def get_stats_async(self, **given: Any) -> AsyncIterator[dict[str, Any]]:
        accept("LLM.get_stats_async", given)
        assert self._used, "there is nothing to tell before the first request"
        yield {
            "kvCacheStats": {"maxNumBlocks": BLOCKS, "usedNumBlocks": 1, "tokensPerBlock": PER_BLOCK},
            "iter": 1,
        }

    async def get_kv_cache_events_async(self, **given: Any) -> AsyncIterator[dict[str, Any]]:
        accept("LLM.get_kv_cache_events_async", given)
        assert self._used, "there is nothing to tell before the first request"
        while self._events:
            yield self._events.pop(0)

    def shutdown(self) -> None:
        pass

    def _store(self, prompt: list[int]) -> None:
        parent = None
        for start in range(0, len(prompt) // PER_BLOCK * PER_BLOCK, PER_BLOCK):
            name = hash(tuple(prompt[: start + PER_BLOCK]))
            tokens = [
                {"type": "unique_token", "token_id": token, "token_extra_id": 0}
                for token in prompt[start : start + PER_BLOCK]
            ]
            block = {"type": "stored_block", "block_hash": name, "tokens": tokens}
            if name not in self._cached and self._publishes:
                self._cached.add(name)
                self._tell({"type": "stored", "parent_hash": parent, "blocks": [block]})
            parent = name

    def _tell(self, data: dict[str, Any]) -> None:
        self._events.append({"event_id": self._numbered, "data": data, "window_size": 4096})
        self._numbered += 1
