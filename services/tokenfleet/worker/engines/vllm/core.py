"""vLLM's engine core as the child's loop steps it.

`LLMEngine` builds it (in this process, since multiprocessing is off) and checks and completes requests; its
own `step`, which would make an object for each request and step, is left aside: a step's outputs go straight
into the report. What a step computed is told by the scheduler, as it hands in the step's results.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.engine import FinishReason

from tokenfleet.core.engine_blocks import EngineBlocks
from tokenfleet.worker.engines.hosted.stepping import FAILED, LENGTH, STOP, RefusedError, StepReport

# A step without anything to compute (a grammar is being compiled) is not repeated at once.
_NOTHING_YET_S = 0.001


class SteppedCore:
    """The `StepEngine` around vLLM's core."""

    def __init__(self, engine: Any, block_size: int) -> None:
        self._engine = engine
        self._client = engine.engine_core
        self._core = self._client.engine_core
        self._scheduler = self._core.scheduler
        self._config = engine.vllm_config
        self._pool = self._scheduler.kv_cache_manager.block_pool
        self._blocks = EngineBlocks(block_size, self)
        self._prefilling: dict[int, int] = {}  # tokens by key, until the first new one
        self._report = StepReport()
        self._listen()

    def facts(self) -> dict[str, Any]:
        cache, model = self._config.cache_config, self._config.model_config
        return {
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantization": model.quantization or "",
            "max_model_len": model.max_model_len,
            "max_num_seqs": self._config.scheduler_config.max_num_seqs,
            "kv_tokens": cache.num_gpu_blocks * self._tokens_per_block,
            "kv_bytes": cache.kv_cache_memory_bytes or 0,
            "gpu_memory_utilization": cache.gpu_memory_utilization,
            "vocabulary": model.get_vocab_size(),
        }

    def submit(self, request: dict[str, Any]) -> None:
        key, ids = request["key"], request["ids"]
        try:
            made = self._engine.input_processor.process_inputs(
                str(key),
                {"type": "token", "prompt_token_ids": ids},
                _params(request),
                self._client.get_supported_tasks(),
                arrival_time=time.time(),
            )
            self._client.add_request(made)
        except Exception as error:  # vLLM's own kinds among them; nothing of it has reached the scheduler yet
            raise RefusedError("INVALID_ARGUMENT", str(error)) from error
        self._prefilling[key] = len(ids)

    def abort(self, key: int) -> None:
        self._prefilling.pop(key, None)
        self._client.abort_requests([str(key)])

    def wait_s(self) -> float | None:
        return 0 if self._scheduler.has_requests() or self._core.batch_queue else None

    def step(self) -> StepReport:
        report = self._report = StepReport()
        outputs, executed = self._core.step_fn()
        self._core.post_step(executed)
        for output in outputs[0].outputs if outputs and 0 in outputs else ():
            self._take(output, report)
        self._add_load(report)
        if not executed and not report.says_anything:
            time.sleep(_NOTHING_YET_S)
        return report

    def sleep(self) -> None:
        """The weights go to the host's memory, the cache nowhere."""
        while self.wait_s() == 0:  # the device may still be at a step of sequences that are gone
            self._core.post_step(self._core.step_fn()[1])
        self._client.sleep(1)

    def wake_up(self) -> None:
        self._client.wake_up()

    def close(self) -> None:
        self._client.shutdown()

    def cache_stored(self, hashes: Sequence[int], parent: int) -> None:
        self._report.cache.append((list(hashes), parent))

    def cache_removed(self, hashes: Sequence[int]) -> None:
        self._report.cache.append((list(hashes), None))

    @property
    def _tokens_per_block(self) -> int:
        return int(self._scheduler.block_size)

    def _take(self, output: Any, report: StepReport) -> None:
        key = int(output.request_id)
        ids = list(output.new_token_ids)
        if output.new_logprobs is not None:
            report.logprobs += _logprobs(key, ids, output.new_logprobs)
        ended = output.finish_reason
        if ended == FinishReason.STOP:
            ids = ids[:-1]  # the token that stopped it
            del report.logprobs[len(report.logprobs) - (output.new_logprobs is not None) :]
        if ids:
            report.deltas.append((key, ids))
        self._prefilling.pop(key, None)
        if ended in (FinishReason.STOP, FinishReason.REPETITION):
            report.finished.append((key, STOP, None))
        elif ended == FinishReason.LENGTH:
            report.finished.append((key, LENGTH, None))
        elif ended == FinishReason.ERROR:
            report.finished.append((key, FAILED, ("ENGINE_FAILED", "vLLM gave the request up")))

    def _listen(self) -> None:
        """Hears of each step's work and of the cache, where the scheduler tells itself."""
        update = self._scheduler.update_from_output

        def update_from_output(scheduled: Any, results: Any) -> Any:
            self._scheduled(scheduled)
            return update(scheduled, results)

        self._scheduler.update_from_output = update_from_output
        self._scheduler.kv_event_publisher = _Listener(self._blocks)

    def _scheduled(self, scheduled: Any) -> None:
        report = self._report
        for new in scheduled.scheduled_new_reqs:
            report.admitted.append((int(new.req_id), new.num_computed_tokens))
        for request, tokens in scheduled.num_scheduled_tokens.items():
            if int(request) in self._prefilling:
                report.prefill_tokens += tokens
            else:
                report.batch += 1

    def _add_load(self, report: StepReport) -> None:
        used = self._pool.num_gpu_blocks - 1 - self._pool.get_num_free_blocks()
        report.kv_tokens = used * self._tokens_per_block
        report.context_tokens = sum(request.num_tokens for request in self._scheduler.running)
        requests = self._scheduler.requests
        report.queued_prefill_tokens = sum(
            max(0, tokens - requests[str(key)].num_computed_tokens)
            for key, tokens in self._prefilling.items()
            if str(key) in requests
        )


class _Listener:
    """In the place of vLLM's publisher of cache events."""

    def __init__(self, blocks: EngineBlocks) -> None:
        self._blocks = blocks

    def publish(self, batch: Any) -> None:
        for event in batch.events:
            if isinstance(event, BlockStored):
                if not event.group_idx and not any(event.extra_keys or ()):
                    self._stored(event)
            elif isinstance(event, BlockRemoved):
                if not event.group_idx:
                    self._blocks.removed(event.block_hashes)
            elif isinstance(event, AllBlocksCleared):
                self._blocks.cleared()

    def _stored(self, event: Any) -> None:
        parent, size = event.parent_block_hash, event.block_size
        for number, block in enumerate(event.block_hashes):
            self._blocks.stored(block, parent, event.token_ids[number * size : (number + 1) * size])
            parent = block

    def get_publisher_config(self) -> None:
        return None

    def shutdown(self) -> None:
        pass


def _params(request: dict[str, Any]) -> SamplingParams:
    told = dict(request["sampling"])
    if "logit_bias" in told:
        told["logit_bias"] = dict(told["logit_bias"])
    if "schema" in request:
        told["structured_outputs"] = StructuredOutputsParams(json=request["schema"])
    return SamplingParams(
        **told,
        max_tokens=request["max_tokens"],
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,
    )


def _logprobs(key: int, ids: list[int], lists: Any) -> list[tuple[int, int, float, list[tuple[int, float]]]]:
    """One record a token; vLLM has the token itself in the first column, the likeliest in the others."""
    records = []
    for position, token in enumerate(ids):
        tokens, values = lists.logprob_token_ids[position], lists.logprobs[position]
        top = list(zip(tokens[1:].tolist(), values[1:].tolist(), strict=True))
        records.append((key, token, float(values[0]), top))
    return records
