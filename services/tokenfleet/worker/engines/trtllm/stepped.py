"""TensorRT-LLM's LLM API as the child's loop steps it.

The engine batches and steps by itself, in processes of its own; what it made arrives on an event loop that
runs while the child's loop asks for a step. One iteration of the engine arrives all at once, so that a step
of this loop is a step of that engine. Statistics and cache events come on streams beside, which begin with
the first request and have to be asked for again whenever they run dry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tensorrt_llm import SamplingParams
from tensorrt_llm.llmapi import GuidedDecodingParams

from tokenfleet.worker.engines.end_token import EndToken
from tokenfleet.worker.engines.hosted.stepping import FAILED, LENGTH, STOP, RefusedError, StepReport
from tokenfleet.worker.engines.trtllm.cache import CacheEvents

# How long a step may wait for the engine before the child looks for new requests again.
_PATIENCE_S = 0.002
# How often it is looked for cache events that come when nothing runs any more.
_IDLE_S = 0.25
# A stream without news for so long is over until it is asked for again.
_STREAM_TIMEOUT_S = 0.5
_ASK_AGAIN_S = 0.05
# For the engine to tell its size, once the first request is through.
_INTRODUCTION_S = 5.0

_ENDINGS = {"stop": STOP, "length": LENGTH}


@dataclass(slots=True, eq=False)
class _Row:
    key: int
    prompt: int
    result: Any
    sent: int = 0  # ids that were seen, the held one included
    told: int = 0  # log probabilities that were reported
    end: EndToken = field(default_factory=EndToken)


class SteppedLlm:
    """The `StepEngine` around an `LLM`."""

    def __init__(self, llm: Any, block_size: int, end_ids: frozenset[int]) -> None:
        self._llm = llm
        self._end_ids = end_ids
        self._loop = asyncio.new_event_loop()
        self._arrived = asyncio.Event()
        self._rows: dict[int, _Row] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._following = False
        self._events = CacheEvents(block_size, self)
        self._report = StepReport()
        self._used_tokens = 0
        self._look_at = 0.0
        self.kv_tokens = 0

    def introduce(self) -> None:
        """One token, behind which the engine tells how much its cache holds."""
        self.submit({"key": 0, "ids": [1], "max_tokens": 1, "sampling": {"top_k": 1, "ignore_eos": True}})
        deadline = time.monotonic() + _INTRODUCTION_S
        while (self._rows or not self.kv_tokens) and time.monotonic() < deadline:
            report = self.step()
            for _, how, failure in report.finished:
                if how == FAILED and failure is not None:
                    raise RuntimeError(failure[1])

    def submit(self, request: dict[str, Any]) -> None:
        self._loop.run_until_complete(self._begin(request))

    def abort(self, key: int) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            row.result.abort()

    def wait_s(self) -> float | None:
        return 0.0 if self._rows else max(0.0, self._look_at - time.monotonic())

    def step(self) -> StepReport:
        self._loop.run_until_complete(self._next())
        # what arrives between two steps, while a request is submitted, belongs to the next report
        report, self._report = self._report, StepReport()
        waiting = [row for row in self._rows.values() if not row.sent]
        report.context_tokens = sum(row.prompt + row.sent for row in self._rows.values())
        report.queued_prefill_tokens = sum(row.prompt for row in waiting)
        report.kv_tokens = max(self._used_tokens, report.context_tokens) if self._rows else 0
        self._look_at = time.monotonic() + _IDLE_S
        return report

    def cache_stored(self, hashes: Sequence[int], parent: int) -> None:
        self._report.cache.append((list(hashes), parent))

    def cache_removed(self, hashes: Sequence[int]) -> None:
        self._report.cache.append((list(hashes), None))

    def close(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()
        self._llm.shutdown()

    async def _begin(self, request: dict[str, Any]) -> None:
        try:
            result = self._llm.generate_async(
                {"prompt_token_ids": request["ids"]}, sampling_params=_params(request), streaming=True
            )
        except (ValueError, TypeError) as error:
            raise RefusedError("INVALID_ARGUMENT", str(error)) from error
        row = self._rows[request["key"]] = _Row(request["key"], len(request["ids"]), result)
        self._start(self._consume(row))
        if not self._following:
            self._following = True
            self._start(self._follow(self._llm.get_stats_async, self._take_stats))
            self._start(self._follow(self._llm.get_kv_cache_events_async, self._events.take))

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _next(self) -> None:
        """Until something has arrived, and all that arrived with it was taken."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._arrived.wait()
        except TimeoutError:
            return
        for _ in range(3):
            await asyncio.sleep(0)
        self._arrived.clear()

    async def _consume(self, row: _Row) -> None:
        try:
            async for result in row.result:
                if self._rows.get(row.key) is row:
                    self._take(row, result)
        except Exception as error:  # the engine's word on this request, whatever it calls it
            self._end(row, FAILED, (_reason(error), f"{type(error).__name__}: {error}"))
        else:
            self._end(row, FAILED, ("ENGINE_FAILED", "TensorRT-LLM ended the request without a reason"))

    def _take(self, row: _Row, result: Any) -> None:
        completion = result.outputs[0]
        word = completion.finish_reason if result.finished else None
        new = list(completion.token_ids[row.sent :])
        if new:
            self._count(row, len(new))
        ids = row.end.pass_on(new, self._end_ids, cut_off=word == "length")
        if ids:
            self._report.deltas.append((row.key, ids))
            if completion.logprobs:
                self._add_logprobs(row, ids, completion.logprobs)
        self._arrived.set()
        if word is not None:
            how = _ENDINGS.get(word, FAILED)
            failure = ("ENGINE_FAILED", f"TensorRT-LLM ended the request: {word}") if how == FAILED else None
            self._end(row, how, failure)

    def _count(self, row: _Row, new: int) -> None:
        if row.sent:
            self._report.batch += 1
        else:
            self._report.admitted.append((row.key, 0))
            self._report.prefill_tokens += row.prompt
        row.sent += new

    def _add_logprobs(self, row: _Row, ids: list[int], said: list[Any]) -> None:
        for token in ids:
            of = said[row.told] if row.told < len(said) else None
            row.told += 1
            if isinstance(of, Mapping) and token in of:
                top = [(one, likely.logprob) for one, likely in of.items()]
                self._report.logprobs.append((row.key, token, of[token].logprob, top))

    def _end(self, row: _Row, how: str, failure: tuple[str, str] | None) -> None:
        if self._rows.get(row.key) is row:
            del self._rows[row.key]
            self._report.finished.append((row.key, how, failure))
            self._arrived.set()

    async def _follow(
        self, ask: Callable[..., AsyncIterable[dict[str, Any]]], take: Callable[[dict[str, Any]], None]
    ) -> None:
        while True:
            async for record in ask(timeout=_STREAM_TIMEOUT_S):
                take(record)
            await asyncio.sleep(_ASK_AGAIN_S)

    def _take_stats(self, record: Mapping[str, Any]) -> None:
        cache = record.get("kvCacheStats")
        if cache:
            per_block = cache["tokensPerBlock"]
            self._used_tokens = cache["usedNumBlocks"] * per_block
            self.kv_tokens = cache["maxNumBlocks"] * per_block


def _params(request: dict[str, Any]) -> Any:
    sampling = dict(request["sampling"])
    if "schema" in request:
        sampling["guided_decoding"] = GuidedDecodingParams(json=request["schema"])
    return SamplingParams(max_tokens=request["max_tokens"], detokenize=False, **sampling)


def _reason(error: BaseException) -> str:
    return "OUT_OF_MEMORY" if "out of memory" in str(error).lower() else "ENGINE_FAILED"
