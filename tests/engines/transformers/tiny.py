"""A Llama of a few thousand random weights, and a stepper around it: milliseconds, no files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenfleet.core.blocks import block_hashes
from tokenfleet.core.micro_batching import MicroBatcher

EOS = 2
BLOCK = 4
GREEDY = {"temperature": 0, "ignore_eos": True}


@cache
def model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)  # more would only wait for each other
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,  # answers that depend on every token
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


def prompt(seed: int, length: int) -> list[int]:
    return [3 + (seed * 31 + place * place * 7 + place) % 90 for place in range(length)]


class Engine:
    """A stepper that is driven by hand, on a clock that stands still unless told otherwise."""

    def __init__(
        self, max_batch: int = 8, *, window_s: float = 0.0, prefix_blocks: int = 0, chunk: int = 4_096
    ) -> None:
        from tokenfleet.worker.engines.transformers.stepper import Stepper

        self.now = 0.0
        self.ids: dict[int, list[int]] = {}
        self.reports: list[Any] = []
        batcher = MicroBatcher(window_s=window_s, max_batch=max_batch, capacity_tokens=10_000)
        self.stepper = Stepper(
            model(),
            batcher,
            eos_ids=frozenset({EOS}),
            block_size=BLOCK,
            prefix_blocks=prefix_blocks,
            prefill_chunk_tokens=chunk,
            clock=lambda: self.now,
        )

    def submit(
        self, key: int, ids: Sequence[int], tokens: int = 6, prompt_tokens: int = 0, **sampling: Any
    ) -> None:
        self.stepper.submit(
            {
                "key": key,
                "ids": list(ids),
                "prompt_tokens": prompt_tokens or len(ids),
                "max_tokens": tokens,
                "sampling": {**GREEDY, **sampling},
                "block_hashes": block_hashes(ids, BLOCK),
            }
        )

    def step(self) -> Any:
        report = self.stepper.step()
        self.reports.append(report)
        for key, ids in report.deltas:
            self.ids.setdefault(key, []).extend(ids)
        return report

    def run(self) -> dict[int, list[int]]:
        """Until nothing is left; answers the ids of each key."""
        while (wait := self.stepper.wait_s()) is not None:
            self.now += wait
            self.step()
        return self.ids

    def said(self, name: str) -> list[Any]:
        return [one for report in self.reports for one in getattr(report, name)]


def answer(ids: Sequence[int], tokens: int = 6, **sampling: Any) -> list[int]:
    """Of an engine that does nothing else."""
    engine = Engine(1)
    engine.submit(1, ids, tokens, **sampling)
    return engine.run().get(1, [])
