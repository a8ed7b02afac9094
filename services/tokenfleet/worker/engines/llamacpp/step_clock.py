"""Engine steps, recognised in a stream of single tokens.

llama.cpp's server reports tokens one sequence at a time and no steps. A step gives each sequence one token at
most, so the step is over when a sequence speaks that has already spoken in it.
"""

from __future__ import annotations

from tokenfleet.worker.engines.step_log import Step, StepLog


class StepClock:
    """Writes to the log what it recognises; times are the caller's clock."""

    def __init__(self, log: StepLog) -> None:
        self._log = log
        self._spoke: set[int] = set()
        self._began_at: float | None = None
        self._decoded = 0
        self._prefilled = 0

    def spoke(self, now: float, key: int, context_tokens: int, prefilled: int = 0) -> None:
        """A sequence got a token, or a chunk of `prefilled` prompt tokens computed."""
        if key in self._spoke:
            self._close(now, context_tokens)
        elif self._began_at is None:
            self._began_at = now
        self._spoke.add(key)
        self._prefilled += prefilled
        self._decoded += not prefilled

    def began(self, now: float) -> None:
        """A sequence is being started; if nothing else runs, the step begins now."""
        if self._began_at is None:
            self._began_at = now

    def idle(self) -> None:
        """Nothing runs: the time until the next token is nobody's step."""
        self._began_at = None
        self._forget()

    def _close(self, now: float, context_tokens: int) -> None:
        if self._began_at is not None:
            self._log.record(Step(now - self._began_at, self._decoded, self._prefilled, context_tokens))
        self._began_at = now
        self._forget()

    def _forget(self) -> None:
        self._spoke.clear()
        self._decoded = self._prefilled = 0
