"""The main program of an engine's child: configuration in, readiness or an error out, gone with the worker.

A worker that was killed cannot clean up. The kernel ends its child (`PR_SET_PDEATHSIG`, Linux) and closes its
end of the channel; a child that sees that first gives its engine a moment to let go of the device and then
ends its whole process group, whatever state that is in.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from tokenfleet.worker.engines.hosted.channel import ChildEnd
from tokenfleet.worker.engines.hosted.stepping import StepEngine, run

_PR_SET_PDEATHSIG = 1
# For an engine to close; what takes longer is killed.
_FAREWELL_S = 3.0

# Says what the child is doing, while it starts.
Say = Callable[[str], None]
# From the configuration to a running engine and what is known of it.
Start = Callable[[dict[str, Any], Say], tuple[StepEngine, dict[str, Any]]]
# The reason of a failure, as named in `common.proto` without its prefix; None: not a special one.
Classify = Callable[[BaseException], str | None]


def main(start: Start, classify: Classify) -> None:
    """Runs an engine until the worker closes the channel or dies."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # engines print; the answer must stay alone
    die_with_parent()
    line = sys.stdin.readline()
    if not line:
        return
    config = json.loads(line)
    descriptor = config.pop("channel")
    close_inherited(keep=(answers, descriptor))

    def answer(said: dict[str, Any]) -> None:
        os.write(answers, json.dumps(said).encode() + b"\n")

    channel = ChildEnd(descriptor)
    inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, inbox), daemon=True).start()
    try:
        engine, facts = start(config, lambda doing: answer({"progress": doing}))
    except Exception as error:
        answer({"failed": describe(error, classify, "LOAD_FAILED")})
        _end_group()
        return
    answer({"ready": facts})
    os.close(answers)
    try:
        run(engine, inbox, channel.send)
    except Exception as error:
        import traceback

        traceback.print_exc()
        channel.send({"failed": describe(error, classify, "ENGINE_FAILED")})
        sys.stderr.flush()
        os._exit(1)  # the engine's own threads and exit handlers may be as broken as it is
    engine.close()
    _end_group()


def describe(error: BaseException, classify: Classify, otherwise: str) -> dict[str, str]:
    """A failure as it travels: the root of a chain of exceptions is what happened."""
    root = error
    while (cause := root.__cause__) is not None:
        root = cause
    message = f"{type(error).__name__}: {error}"
    if root is not error and str(root) not in message:
        message += f"; caused by {type(root).__name__}: {root}"
    return {"reason": classify(error) or classify(root) or otherwise, "message": message}


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """While libraries hold the interpreter's lock no thread notices a thing: the kernel does. 0: no more."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number)


def close_inherited(keep: tuple[int, ...] = ()) -> None:
    """Whatever the worker inherited itself: holding it open would hide the worker's death from others."""
    start = 3
    for descriptor in sorted(keep):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _listen(channel: ChildEnd, inbox: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    while (messages := channel.receive()) is not None:
        for message in messages:
            inbox.put(message)
    inbox.put(None)
    timer = threading.Timer(_FAREWELL_S, _end_group)
    timer.daemon = True
    timer.start()


def _end_group() -> None:
    """This process and all that it started; it leads their group."""
    sys.stderr.flush()
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)
