"""The same questions to a gguf before and after: how far the likeliest answers stay the same.

It is a smoke test and no benchmark of a model's worth: a broken file shows at once, a good one agrees for
most of an answer. One token that differs makes all after it differ, so the common beginning is what counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from tokenfleet.cli.errors import CliError
from tokenfleet.runtime.last_words import last_words

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "To make bread you need flour,",
    "Once upon a time there was a",
    "import numpy as",
    "The first president of the United States was",
)
TOKENS = 12


@dataclass(frozen=True, slots=True)
class Agreement:
    """`share` of the text up to the first difference; `whole`: answers that are the same to their end."""

    share: float
    whole: int
    of: int


def compare(before: Path, after: Path) -> Agreement:
    """Raises CliError when one of the files cannot be run."""
    return agreement(_answers(before), _answers(after))


def agreement(before: Sequence[str], after: Sequence[str]) -> Agreement:
    shares = [
        _common(one, other) / len(one) if one else 1.0 for one, other in zip(before, after, strict=True)
    ]
    return Agreement(sum(shares) / len(shares), sum(share == 1 for share in shares), len(shares))


def _common(one: str, other: str) -> int:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in same)


def _answers(path: Path) -> list[str]:
    """In a process of its own: a library that fails on a file may take its process with it."""
    done = subprocess.run(
        [sys.executable, "-m", "tokenfleet.cli.quantize.answers", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = last_words(done.stderr, done.returncode)
        raise CliError(f"{path} cannot be run to check it: {said}")
    answers: list[str] = json.loads(done.stdout.splitlines()[-1])
    return answers
