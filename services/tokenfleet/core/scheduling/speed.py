"""How long a replica's steps take, learned from its own steps.

A step costs something anyhow, something for each sequence that decodes, for each prompt token that is
computed and for each cached token that is read: four prices, and no configuration can know them. How they
stand to each other is a matter of the model and the machine, and hardly changes: they are fitted by least
squares of relative errors, with a long memory, and kept from going below zero, since a negative price is an
artefact of collinear samples. How fast the machine is at the moment may change at once, for all four alike:
that is one factor with a short memory. So a worker that becomes slow is known to be within a few steps.

One step in a hundred takes ten times as long for reasons of its own (a page fault, a neighbour): a single
step moves neither the factor nor the fit by more than a surprise of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Steps after which an old one has lost most of its weight: in the prices, and in the factor.
FIT_MEMORY = 256
FACTOR_MEMORY = 8
SURPRISE = 2.0
# Weight of what is believed beforehand, in steps.
PRIOR_STEPS = 2.0
# The prices are worked out anew after so many steps, by so many rounds.
SOLVE_EVERY = 4
SWEEPS = 3
LEAST_STEP_S = 1e-6
# Size of each term in a typical step, so that the prior weighs equally on all four.
_TYPICAL = (1.0, 8.0, 512.0, 8192.0)
_TERMS = range(4)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an engine: what was in it, and how long it took."""

    seconds: float
    batch: int  # sequences that got a token
    prefill_tokens: int
    context_tokens: int


@dataclass(slots=True)
class Price:
    """Seconds: of any step, and more for each sequence, prompt token and cached token in it."""

    base_s: float = 0.02
    per_sequence_s: float = 0.000_2
    per_prefill_token_s: float = 0.000_2
    per_context_token_s: float = 0.000_000_02

    def step_s(self, batch: float, prefill_tokens: float, context_tokens: float) -> float:
        return (
            self.base_s
            + self.per_sequence_s * batch
            + self.per_prefill_token_s * prefill_tokens
            + self.per_context_token_s * context_tokens
        )


class StepSpeed:
    """The prices of one replica's steps; until it has shown some, those believed beforehand."""

    __slots__ = ("_factor", "_fit", "_moments", "_pulls", "steps")

    def __init__(self, prior: Price | None = None) -> None:
        prior = prior or Price()
        self.steps = 0
        self._fit = [
            prior.base_s,
            prior.per_sequence_s,
            prior.per_prefill_token_s,
            prior.per_context_token_s,
        ]
        self._factor = 1.0
        weights = [PRIOR_STEPS * (size / self._expected(_TYPICAL)) ** 2 for size in _TYPICAL]
        self._moments = [[weights[row] if row == column else 0.0 for column in _TERMS] for row in _TERMS]
        self._pulls = [weight * price for weight, price in zip(weights, self._fit, strict=True)]

    @property
    def price(self) -> Price:
        """What a step costs now."""
        base, sequence, prefill, context = (self._factor * price for price in self._fit)
        return Price(base, sequence, prefill, context)

    def learn(self, step: Step) -> None:
        """Takes in one step that did something."""
        terms = (1.0, float(step.batch), float(step.prefill_tokens), float(step.context_tokens))
        expected_s = self._expected(terms)
        relative = step.seconds / expected_s
        self.steps += 1
        if self.steps == 1:
            self._factor = relative
        tempered = min(max(relative, self._factor / SURPRISE), self._factor * SURPRISE)
        self._learn_prices([term / expected_s for term in terms], tempered / self._factor)
        self._factor += (tempered - self._factor) / min(self.steps, FACTOR_MEMORY)

    def _expected(self, terms: Sequence[float]) -> float:
        expected_s = 0.0
        for price, term in zip(self._fit, terms, strict=True):
            expected_s += price * term
        return max(expected_s, LEAST_STEP_S)

    def _learn_prices(self, terms: Sequence[float], target: float) -> None:
        keep = 1.0 - 1.0 / FIT_MEMORY
        for row, term in enumerate(terms):
            moments = self._moments[row]
            for column, other in enumerate(terms):
                moments[column] = moments[column] * keep + term * other
            self._pulls[row] = self._pulls[row] * keep + term * target
        if self.steps <= FACTOR_MEMORY or self.steps % SOLVE_EVERY == 0:
            self._solve()

    def _solve(self) -> None:
        """Coordinate descent from the last solution, which is never far."""
        fit = self._fit
        for _ in range(SWEEPS):
            for row, moments in enumerate(self._moments):
                rest = -moments[row] * fit[row]
                for moment, price in zip(moments, fit, strict=True):
                    rest += moment * price
                fit[row] = max(0.0, (self._pulls[row] - rest) / moments[row])
