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

from dataclasses import dataclass
from typing import NamedTuple

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
# Four numbers, one a price; written out below, since to go over them would take longer than to work on them.
Four = tuple[float, float, float, float]
# Size of each term in a typical step, so that the prior weighs equally on all four.
_TYPICAL: Four = (1.0, 8.0, 512.0, 8192.0)
_KEPT = 1.0 - 1.0 / FIT_MEMORY


class Step(NamedTuple):
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

    __slots__ = ("_factor", "_fit", "_moments", "_price", "_pulls", "steps")

    def __init__(self, prior: Price | None = None) -> None:
        prior = prior or Price()
        self.steps = 0
        self._fit: Four = (
            prior.base_s,
            prior.per_sequence_s,
            prior.per_prefill_token_s,
            prior.per_context_token_s,
        )
        self._factor = 1.0
        base, sequence, prefill, context = (
            PRIOR_STEPS * (size / self._expected(_TYPICAL)) ** 2 for size in _TYPICAL
        )
        # the upper half of a symmetric matrix, row by row
        self._moments = (base, 0.0, 0.0, 0.0, sequence, 0.0, 0.0, prefill, 0.0, context)
        weights = zip((base, sequence, prefill, context), self._fit, strict=True)
        self._pulls: list[float] = [weight * price for weight, price in weights]
        self._price: Price | None = None

    @property
    def price(self) -> Price:
        """What a step costs now."""
        if self._price is None:
            factor, (base, sequence, prefill, context) = self._factor, self._fit
            self._price = Price(factor * base, factor * sequence, factor * prefill, factor * context)
        return self._price

    def learn(self, step: Step) -> None:
        """Takes in one step that did something."""
        seconds, batch, prefill_tokens, context_tokens = step
        expected_s = self._expected((1.0, batch, prefill_tokens, context_tokens))
        relative = seconds / expected_s
        self.steps += 1
        if self.steps == 1:
            self._factor = relative
        factor = self._factor
        tempered = min(max(relative, factor / SURPRISE), factor * SURPRISE)
        self._learn_prices(
            1.0 / expected_s,
            batch / expected_s,
            prefill_tokens / expected_s,
            context_tokens / expected_s,
            tempered / factor,
        )
        self._factor = factor + (tempered - factor) / min(self.steps, FACTOR_MEMORY)
        self._price = None

    def _expected(self, terms: Four) -> float:
        base, sequence, prefill, context = self._fit
        one, batch, prefill_tokens, context_tokens = terms
        expected_s = base * one + sequence * batch + prefill * prefill_tokens + context * context_tokens
        return max(expected_s, LEAST_STEP_S)

    def _learn_prices(self, a: float, b: float, c: float, d: float, target: float) -> None:
        pulls, keep = self._pulls, _KEPT
        aa, ab, ac, ad, bb, bc, bd, cc, cd, dd = self._moments
        self._moments = (
            aa * keep + a * a,
            ab * keep + a * b,
            ac * keep + a * c,
            ad * keep + a * d,
            bb * keep + b * b,
            bc * keep + b * c,
            bd * keep + b * d,
            cc * keep + c * c,
            cd * keep + c * d,
            dd * keep + d * d,
        )
        pulls[0] = pulls[0] * keep + a * target
        pulls[1] = pulls[1] * keep + b * target
        pulls[2] = pulls[2] * keep + c * target
        pulls[3] = pulls[3] * keep + d * target
        if self.steps <= FACTOR_MEMORY or self.steps % SOLVE_EVERY == 0:
            self._solve()

    def _solve(self) -> None:
        """Coordinate descent from the last solution, which is never far."""
        aa, ab, ac, ad, bb, bc, bd, cc, cd, dd = self._moments
        pull_a, pull_b, pull_c, pull_d = self._pulls
        a, b, c, d = self._fit
        for _ in range(SWEEPS):
            a = max(0.0, (pull_a - ab * b - ac * c - ad * d) / aa)
            b = max(0.0, (pull_b - ab * a - bc * c - bd * d) / bb)
            c = max(0.0, (pull_c - ac * a - bc * b - cd * d) / cc)
            d = max(0.0, (pull_d - ad * a - bd * b - cd * c) / dd)
        self._fit = a, b, c, d
