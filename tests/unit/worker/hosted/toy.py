"""An engine that counts: after n comes n + 1. It ends by itself before 100, 200, …, and fails on demand.

Run as a module it is the child's main program; its configuration says what goes wrong and when.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from tokenfleet.worker.engines.hosted.child import main
from tokenfleet.worker.engines.hosted.stepping import LENGTH, STOP, RefusedError, StepReport


class LackingMemory(Exception):
    pass


class Toy:
    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._rows: dict[int, dict[str, Any]] = {}
        self._fresh: list[tuple[int, int]] = []
        self._steps = 0
        self._asleep = False

    def submit(self, request: dict[str, Any]) -> None:
        if request["ids"][-1] == 13:
            raise RefusedError("INVALID_ARGUMENT", "13 brings bad luck")
        self._rows[request["key"]] = {"last": request["ids"][-1], "left": request["max_tokens"]}
        self._fresh.append((request["key"], 0))

    def abort(self, key: int) -> None:
        self._rows.pop(key, None)

    def wait_s(self) -> float | None:
        return 0 if self._rows else None

    def sleep(self) -> None:
        if self._config.get("trouble") == "insomnia":
            time.sleep(3600)
        self._asleep = True

    def wake_up(self) -> None:
        self._asleep = False

    def asleep(self) -> bool:
        return self._asleep

    def double(self, number: int) -> int:
        return 2 * number

    def close(self) -> None:
        pass

    def step(self) -> StepReport:
        self._steps += 1
        self._misbehave(self._config.get("trouble", ""), self._config.get("at_step", 0))
        report = StepReport(admitted=self._fresh, batch=len(self._rows), context_tokens=7, kv_tokens=33)
        self._fresh = []
        for key, row in list(self._rows.items()):
            if (row["last"] + 1) % 100 == 0:
                report.finished.append((key, STOP, None))
            else:
                row["last"] += 1
                row["left"] -= 1
                report.deltas.append((key, [row["last"]]))
                report.logprobs.append((key, row["last"], -0.5, [(row["last"], -0.5)]))
                if row["left"] == 0:
                    report.finished.append((key, LENGTH, None))
        for key, _, _ in report.finished:
            del self._rows[key]
        time.sleep(0.001)
        return report

    def _misbehave(self, trouble: str, at_step: int) -> None:
        if self._steps != at_step:
            return
        if trouble == "hang":
            time.sleep(3600)
        elif trouble == "crash":
            os.abort()
        elif trouble == "memory":
            raise LackingMemory("no room for another block")
        elif trouble == "error":
            raise ValueError("this cannot be")


def start(config: dict[str, Any], say: Callable[[str], None]) -> tuple[Toy, dict[str, Any]]:
    say("counting its toes")
    if config.get("trouble") == "start":
        raise RuntimeError("no toes")
    if config.get("trouble") == "fork":
        config["grandchild"] = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "3600")
    return Toy(config), {"toes": 10, "grandchild": config.get("grandchild", 0)}


def classify(error: BaseException) -> str | None:
    return "OUT_OF_MEMORY" if isinstance(error, LackingMemory) else None


if __name__ == "__main__":
    main(start, classify)
