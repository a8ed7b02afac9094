"""The same engine in a child: each sequence gets a token a step, and a step is one message."""

from __future__ import annotations

import time
from typing import Any

from tokenfleet.worker.engines.hosted.child import Say, main
from tokenfleet.worker.engines.hosted.stepping import LENGTH, StepReport


class Paced:
    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._left: dict[int, int] = {}
        self._new: list[tuple[int, int]] = []

    def submit(self, request: dict[str, Any]) -> None:
        self._left[request["key"]] = request["max_tokens"]
        self._new.append((request["key"], 0))

    def abort(self, key: int) -> None:
        self._left.pop(key, None)

    def wait_s(self) -> float | None:
        return 0 if self._left else None

    def step(self) -> StepReport:
        time.sleep(self._step_s)
        report = StepReport(admitted=self._new, batch=len(self._left))
        self._new = []
        for key, left in list(self._left.items()):
            report.deltas.append((key, [1_000 + left % 1_000]))
            if left == 1:
                report.finished.append((key, LENGTH, None))
                del self._left[key]
            else:
                self._left[key] = left - 1
        return report

    def close(self) -> None:
        pass


def start(config: dict[str, Any], say: Say) -> tuple[Paced, dict[str, Any]]:
    say("making tokens out of nothing")
    return Paced(config["step_s"]), {}


if __name__ == "__main__":
    main(start, lambda error: None)
