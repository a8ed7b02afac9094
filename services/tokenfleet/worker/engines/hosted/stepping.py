"""The child's loop: take what the worker sent, step the engine, report the step.

Messages up, one JSON object each:

- `{"submit": {"key": …, "ids": […], …}}`   with whatever the engine's module on the worker's side put in
- `{"abort": key}`
- `{"call": [number, name, [arguments…]]}`  a method of the engine, such as one that puts it to sleep

Messages down: `{"answer": [number, result, error]}`, and for each step what `StepReport.message` says.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

STOP, LENGTH, FAILED = "stop", "length", "failed"
_LISTS = ("deltas", "finished", "admitted", "logprobs", "cache")


class RefusedError(Exception):
    """This sequence cannot be run; `reason` as in `common.proto`, without its prefix."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class StepReport:
    """What one step brought. Times are of the monotonic clock, which all processes of a machine share."""

    # a sequence's key and its new ids
    deltas: list[tuple[int, list[int]]] = field(default_factory=list)
    # key, one of STOP, LENGTH, FAILED, and for the last one (reason, message)
    finished: list[tuple[int, str, tuple[str, str] | None]] = field(default_factory=list)
    # key, tokens of it that were cached: sequences whose computing begins
    admitted: list[tuple[int, int]] = field(default_factory=list)
    # key, id, its log probability, and [(id, log probability), …] of the likeliest
    logprobs: list[tuple[int, int, float, list[tuple[int, float]]]] = field(default_factory=list)
    # in order: canonical hashes of blocks cached behind a parent, or, where that is None, cached no longer
    cache: list[tuple[list[int], int | None]] = field(default_factory=list)
    # the load behind the step
    kv_tokens: int = 0
    queued_prefill_tokens: int = 0
    context_tokens: int = 0
    # the step itself: sequences that got a token, prompt tokens computed; neither: no step was made
    batch: int = 0
    prefill_tokens: int = 0

    @property
    def made(self) -> bool:
        """A step was computed: engines that prepare the next one meanwhile return without one at first."""
        return bool(self.batch or self.prefill_tokens)

    @property
    def says_anything(self) -> bool:
        return self.made or any(getattr(self, name) for name in _LISTS)

    def message(self, began_at: float, now: float, submits: int) -> dict[str, Any]:
        """As it travels; what is empty is left out."""
        lists = {name: value for name in _LISTS if (value := getattr(self, name))}
        if self.made:
            lists["step"] = (now - began_at, self.batch, self.prefill_tokens, self.context_tokens)
        load = (self.kv_tokens, self.queued_prefill_tokens, self.context_tokens, submits)
        return {**lists, "at": now, "load": load}


class StepEngine(Protocol):
    """The engine, as the child's loop drives it; all calls come from one thread."""

    def submit(self, request: dict[str, Any]) -> None:
        """Raises RefusedError."""

    def abort(self, key: int) -> None:
        """Frees what the sequence holds; unknown keys are none of its concern."""

    def wait_s(self) -> float | None:
        """How long it has nothing to do: 0, it can step now; None, nothing until something is submitted."""

    def step(self) -> StepReport: ...

    def close(self) -> None:
        """Lets go of the device."""


def run(
    engine: StepEngine,
    inbox: queue.SimpleQueue[dict[str, Any] | None],
    send: Callable[[dict[str, Any]], None],
) -> None:
    """Until the inbox says None. An exception of the engine's is its death."""
    submits = 0
    began_at: float | None = None  # of the step that is being computed
    while True:
        refused = StepReport()
        for message in _arrived(inbox, engine.wait_s()):
            if message is None:
                return
            if "submit" in message:
                submits += 1
                _submit(engine, message["submit"], refused)
            elif "abort" in message:
                engine.abort(message["abort"])
            else:
                send({"answer": _called(engine, *message["call"])})
        now = time.monotonic()
        if refused.finished:
            send(refused.message(now, now, submits))
        if engine.wait_s() != 0:
            began_at = None
            continue
        began_at = began_at or now
        report = engine.step()
        now = time.monotonic()
        if report.says_anything:
            send(report.message(began_at, now, submits))
        if report.made:
            began_at = now


def _arrived(
    inbox: queue.SimpleQueue[dict[str, Any] | None], wait_s: float | None
) -> list[dict[str, Any] | None]:
    """What is there; where the engine has time, the first one is waited for."""
    arrived: list[dict[str, Any] | None] = []
    try:
        if wait_s != 0:
            arrived.append(inbox.get(timeout=wait_s))
        while True:
            arrived.append(inbox.get_nowait())
    except queue.Empty:
        return arrived


def _submit(engine: StepEngine, request: dict[str, Any], refused: StepReport) -> None:
    try:
        engine.submit(request)
    except RefusedError as error:
        refused.finished.append((request["key"], FAILED, (error.reason, str(error))))


def _called(engine: StepEngine, number: int, name: str, arguments: list[Any]) -> tuple[int, Any, str]:
    try:
        return number, getattr(engine, name)(*arguments), ""
    except Exception as error:
        return number, None, f"{type(error).__name__}: {error}"
