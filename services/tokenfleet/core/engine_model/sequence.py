"""What the model knows of one request, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

# The next token id, or None where the answer ends by itself.
TokenSource = Callable[[], int | None]


class Ending(Enum):
    STOP = "stop"  # the source had no more
    LENGTH = "length"  # the budget is used up
    ABORTED = "aborted"
    FAILED = "failed"  # the engine died


class Ended(NamedTuple):
    """A sequence's last word; its tokens come before it. What did not happen took no time."""

    key: int
    ending: Ending
    cached_tokens: int
    queue_s: float  # from submit to the start of its prefill
    prefill_s: float  # from there to the first token


@dataclass(slots=True, eq=False)
class ModelSequence:
    """One request. `context_tokens` is all that is to be prefilled: the prompt and what a resume brings."""

    key: int
    context_tokens: int
    budget: int  # tokens it may still generate
    draw: TokenSource
    block_hashes: Sequence[int] = ()
    # kept by the model
    blocks: int = field(default=0, init=False)
    cached_tokens: int = field(default=0, init=False)
    to_prefill: int = field(default=0, init=False)
    submitted_at: float = field(default=0.0, init=False)
    admitted_at: float = field(default=0.0, init=False)
    first_token_at: float = field(default=0.0, init=False)

    def ended(self, ending: Ending) -> Ended:
        return Ended(
            self.key,
            ending,
            self.cached_tokens,
            max(0.0, self.admitted_at - self.submitted_at),
            max(0.0, self.first_token_at - self.admitted_at),
        )
