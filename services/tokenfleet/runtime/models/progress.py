"""How a fetch tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

from tokenfleet.v1 import common_pb2

# stage, bytes done, bytes in all (0: unknown). It may raise: the work then stops and leaves no trace.
Progress = Callable[[common_pb2.LoadProgress.Stage.ValueType, int, int], None]


def no_progress(stage: common_pb2.LoadProgress.Stage.ValueType, done: int, total: int) -> None:
    """For callers who do not watch."""


def report_fetching(progress: Progress, done: int, expected: int) -> None:
    """`expected` is an estimate, or 0."""
    progress(common_pb2.LoadProgress.STAGE_FETCHING, done, max(done, expected) if expected else 0)
