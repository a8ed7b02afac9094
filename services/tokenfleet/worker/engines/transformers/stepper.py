"""The engine as the child's loop drives it: micro-batches in, one report per forward pass out.

Steps that compute prompts are bounded in tokens, so that an abort never waits for a whole batch of long ones.
A sequence that ends, or is aborted, leaves the rectangle before the next step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokenfleet.core.micro_batching import MicroBatcher
from tokenfleet.worker.engines.hosted.stepping import LENGTH, STOP, RefusedError, StepReport
from tokenfleet.worker.engines.transformers.batch import Batch, Row
from tokenfleet.worker.engines.transformers.blocks import BlockStore
from tokenfleet.worker.engines.transformers.sampler import Sampler, likeliest


@dataclass(slots=True, eq=False)
class _Sequence:
    key: int
    ids: list[int]
    left: int  # tokens it may still generate
    sampler: Sampler
    hashes: list[int]  # of the full blocks that may be looked up
    ends: frozenset[int]  # ids that end it
    logprobs: int | None
    context: int = 0  # tokens of it in the KV cache
    next: int = 0  # the id to be computed next


class Stepper:
    """One model and the batch that runs on it."""

    def __init__(
        self,
        model: Any,
        batcher: MicroBatcher,
        *,
        eos_ids: frozenset[int],
        block_size: int,
        prefix_blocks: int,
        prefill_chunk_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._batcher = batcher
        self._eos_ids = eos_ids
        self._block_size = block_size
        self._chunk = prefill_chunk_tokens
        self._clock = clock
        self._store = BlockStore(prefix_blocks) if prefix_blocks else None
        self._waiting: dict[int, _Sequence] = {}
        self._batch: Batch | None = None
        self._rows: list[_Sequence] = []
        self._gone: set[int] = set()  # aborted since the last step
        self._report = StepReport()

    def submit(self, request: dict[str, Any]) -> None:
        ids, budget = request["ids"], request["max_tokens"]
        try:
            self._batcher.add(self._clock(), request["key"], len(ids), budget)
        except ValueError as error:
            raise RefusedError("CONTEXT_LENGTH_EXCEEDED", str(error)) from error
        sampler = Sampler(
            request["sampling"], ids, request["prompt_tokens"], self._eos_ids, self._model.device
        )
        full = (len(ids) - 1) // self._block_size  # one token is left to compute
        ends = frozenset() if request["sampling"].get("ignore_eos") else self._eos_ids
        hashes = request.get("block_hashes", [])[:full] if self._store is not None else []
        logprobs = request["sampling"].get("logprobs")
        self._waiting[request["key"]] = _Sequence(
            request["key"], ids, budget, sampler, hashes, ends, logprobs
        )

    def abort(self, key: int) -> None:
        if self._batcher.remove(key):
            del self._waiting[key]
        elif any(row.key == key for row in self._rows):
            self._gone.add(key)

    def wait_s(self) -> float | None:
        if self._rows:
            return 0
        due = self._batcher.due_at()
        return None if due is None else max(0.0, due - self._clock())

    def step(self) -> StepReport:
        report = self._report = StepReport()
        with torch.inference_mode():
            if self._gone:
                self._leave(set(self._gone))
            if not self._rows:
                self._begin()
            if self._batch is not None:
                self._advance(self._batch)
        report.kv_tokens = self._batch.held if self._batch is not None else 0
        report.queued_prefill_tokens = self._batcher.tokens + self._to_prefill()
        return report

    def close(self) -> None:
        self._rows, self._batch, self._store = [], None, None

    def _begin(self) -> None:
        self._rows = [self._waiting.pop(key) for key in self._batcher.take(self._clock())]
        if not self._rows:
            return
        rows = []
        for sequence in self._rows:
            prefix = self._store.find(sequence.hashes) if self._store is not None else []
            row = Row(sequence.ids, sequence.left, prefix, self._block_size)
            sequence.context = row.cached
            rows.append(row)
            self._report.admitted.append((sequence.key, row.cached))
        self._batch = Batch(self._model, rows)

    def _advance(self, batch: Batch) -> None:
        report = self._report
        report.context_tokens = sum(row.context for row in self._rows)
        if not batch.left:
            logits = batch.decode([row.next for row in self._rows])
            for row in self._rows:
                row.context += 1
        else:
            before = self._to_prefill()
            logits = batch.prefill(max(1, self._chunk // batch.rows))
            if batch.left:
                report.prefill_tokens = before - self._to_prefill()
                return
            report.prefill_tokens = before
            self._keep_prompts(batch)
            for row in self._rows:
                row.context = len(row.ids)
        report.batch = len(self._rows)
        self._take(logits)

    def _take(self, logits: torch.Tensor) -> None:
        """The next id of each row, and who ends with it."""
        ended: set[int] = set()
        report = self._report
        for index, (row, token) in enumerate(zip(self._rows, self._draw(logits), strict=True)):
            if token in row.ends:
                report.finished.append((row.key, STOP, None))
                ended.add(row.key)
                continue
            report.deltas.append((row.key, [token]))
            if row.logprobs is not None:
                report.logprobs.append((row.key, token, *likeliest(logits[index], token, row.logprobs)))
            row.sampler.took(token)
            row.next = token
            row.left -= 1
            if row.left == 0:
                report.finished.append((row.key, LENGTH, None))
                ended.add(row.key)
        if ended:
            self._leave(ended)

    def _draw(self, logits: torch.Tensor) -> list[int]:
        tokens: list[int] = logits.argmax(-1).tolist()
        for index, row in enumerate(self._rows):
            if not row.sampler.plain:
                tokens[index] = row.sampler.draw(logits[index].clone())
        return tokens

    def _leave(self, keys: set[int]) -> None:
        stay = [index for index, row in enumerate(self._rows) if row.key not in keys]
        self._rows = [self._rows[index] for index in stay]
        self._gone -= keys
        if not stay:
            self._batch = None
        elif self._batch is not None:
            self._batch.keep(stay)

    def _to_prefill(self) -> int:
        """Prompt tokens of the batch that are still to be computed, padding left out."""
        if self._batch is None or not self._batch.left:
            return 0
        return sum(min(self._batch.left, len(row.ids) - row.context) for row in self._rows)

    def _keep_prompts(self, batch: Batch) -> None:
        """Full blocks of the prompts, for whoever begins alike."""
        if self._store is None:
            return
        if not batch.shareable:
            self._store = None
            return
        for index, row in enumerate(self._rows):
            known = row.context // self._block_size
            blocks = batch.blocks(index, len(row.hashes) - known, self._block_size)
            new = self._store.keep(row.hashes, known, blocks)
            self._report.cache += _runs(row.hashes, new)
        if evicted := self._store.evict():
            self._report.cache.append((evicted, None))


def _runs(hashes: Sequence[int], new: Collection[int]) -> list[tuple[list[int], int | None]]:
    """The new ones among them, each run of neighbours behind its parent."""
    runs: list[tuple[list[int], int | None]] = []
    parent, running = 0, False
    for name in hashes:
        if name in new:
            if not running:
                runs.append(([], parent))
            runs[-1][0].append(name)
        parent, running = name, name in new
    return runs
