"""The next id out of one row's logits.

In the order that other servers have: penalties, biases and bans change the logits; a temperature of zero
takes the likeliest; otherwise the temperature comes before the truncations. Each row draws from a generator
of its own, so that what a seed gives does not depend on who else is in the batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

_GREEDY_BELOW = 1e-5


class Sampler:
    """One sequence's parameters, as `request_of` puts them, and what it has generated so far."""

    def __init__(
        self,
        asked: Mapping[str, Any],
        ids: Sequence[int],
        prompt_tokens: int,
        eos_ids: Collection[int],
        device: torch.device,
    ) -> None:
        self._temperature: float = asked.get("temperature", 1.0)
        self._top_k: int = asked.get("top_k", 0)
        self._top_p: float = asked.get("top_p", 1.0)
        self._min_p: float = asked.get("min_p", 0.0)
        self._repetition: float = asked.get("repetition_penalty", 1.0)
        self._presence: float = asked.get("presence_penalty", 0.0)
        self._frequency: float = asked.get("frequency_penalty", 0.0)
        self._bias = {int(token): bias for token, bias in asked.get("logit_bias", {}).items()}
        self._min_tokens: int = asked.get("min_tokens", 0)
        self._banned = sorted({*eos_ids, *asked.get("stop_token_ids", ())})
        self._seen = set(ids) if self._repetition != 1.0 else set()
        self._counts: dict[int, int] = {}
        self._emitted = 0
        for token in ids[prompt_tokens:]:
            self.took(token)
        self._generator = None
        if self._temperature >= _GREEDY_BELOW and "seed" in asked:
            self._generator = torch.Generator(device).manual_seed(asked["seed"])

    @property
    def plain(self) -> bool:
        """The likeliest id of the logits as they are."""
        return (
            self._temperature < _GREEDY_BELOW
            and not self._bias
            and not (self._repetition != 1.0 or self._presence or self._frequency)
            and self._emitted >= self._min_tokens
        )

    def took(self, token: int) -> None:
        """The sequence has this id now."""
        self._emitted += 1
        if self._presence or self._frequency:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._repetition != 1.0:
            self._seen.add(token)

    def draw(self, logits: torch.Tensor) -> int:
        """`logits` is a row of floats that nobody else needs."""
        logits = self._changed(logits)
        if self._temperature < _GREEDY_BELOW:
            return int(logits.argmax())
        logits = self._truncated(logits / self._temperature)
        # the largest of p / Exp(1) is distributed as p is: no sum, and nothing to search in
        noise = torch.empty_like(logits).exponential_(generator=self._generator)
        return int((logits.softmax(-1) / noise).argmax())

    def _changed(self, logits: torch.Tensor) -> torch.Tensor:
        if self._repetition != 1.0 and self._seen:
            ids = torch.tensor(sorted(self._seen), device=logits.device)
            found = logits[ids]
            logits[ids] = torch.where(found > 0, found / self._repetition, found * self._repetition)
        if self._counts:
            ids = torch.tensor(list(self._counts), device=logits.device)
            counts = torch.tensor(list(self._counts.values()), device=logits.device, dtype=logits.dtype)
            logits[ids] -= self._presence + self._frequency * counts
        for token, bias in self._bias.items():
            if token < len(logits):
                logits[token] += bias
        if self._emitted < self._min_tokens:
            logits[self._banned] = -torch.inf
        return logits

    def _truncated(self, logits: torch.Tensor) -> torch.Tensor:
        if 0 < self._top_k < len(logits):
            least = logits.topk(self._top_k).values[-1]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self._min_p > 0:
            probabilities = logits.softmax(-1)
            logits = logits.masked_fill(probabilities < self._min_p * probabilities.max(), -torch.inf)
        if self._top_p < 1:
            ordered, ids = logits.sort(descending=True)
            probabilities = ordered.softmax(-1)
            beyond = probabilities.cumsum(-1) - probabilities >= self._top_p
            beyond[0] = False
            logits = logits.index_fill(0, ids[beyond], -torch.inf)
        return logits


def likeliest(logits: torch.Tensor, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """The log probability of the id and of the `count` likeliest, before temperature and truncation."""
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(count) if count else None
    found = [] if top is None else list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return float(logprobs[token]), found
