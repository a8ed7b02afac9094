"""How long answers get: learned for each model and tenant, from the answers they got."""

from __future__ import annotations

from collections import OrderedDict

from tokenfleet.core.scheduling.policies import UNKNOWN_TOKENS

# Answers after which an old one has lost most of its weight.
MEMORY = 64
TENANTS_REMEMBERED = 4096


class AnswerLengths:
    """Mean lengths in tokens, for the models and tenants that asked last."""

    def __init__(self) -> None:
        self._means: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def learn(self, model: str, tenant: str, tokens: int) -> None:
        """An answer ended by itself, or by its limit."""
        mean, count = self._means.pop((model, tenant), (float(tokens), 0))
        count += 1
        self._means[model, tenant] = (mean + (tokens - mean) / min(count, MEMORY), count)
        if len(self._means) > TENANTS_REMEMBERED:
            self._means.popitem(last=False)

    def expect(self, model: str, tenant: str, limit: int) -> float:
        """Tokens of the next answer; `limit` 0: none is known."""
        mean, _ = self._means.get((model, tenant), (float(UNKNOWN_TOKENS), 0))
        return min(mean, limit) if limit else mean
