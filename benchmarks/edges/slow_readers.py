"""The crowd that does not read: `python -m benchmarks.edges.slow_readers '{…}'`, a process of its own.

It opens its streams spread over the arrival time, says `open`, and from then on reads only what each reader's
habit says. At a line on its standard input it reads everything that is still to be had, prints what became of
the streams as one line of JSON, and ends.
"""

from __future__ import annotations

import json
import selectors
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from typing import Any

from benchmarks.edges.plan import Habit, SlowCrowd
from benchmarks.edges.readers import End, Heard, Reader, SocketReader, SseReader, connect

# How long the gateway may keep what is still to be read to itself.
PATIENCE_S = 20.0
MOST_READ = 65_536


class Crowd:
    """All slow readers, on one thread: with what they read, they need no more."""

    def __init__(self, crowd: SlowCrowd) -> None:
        self._crowd = crowd
        self._selector = selectors.DefaultSelector()
        self._readers: list[tuple[Habit, str, Reader]] = []

    def arrive(self) -> None:
        """Opens every stream, spread over the arrival time, the habits mixed."""
        total, begin = sum(self._crowd.readers.values()), time.monotonic()
        for position, habit in enumerate(_mixed(self._crowd.readers)):
            time.sleep(max(0.0, begin + self._crowd.arrival_s * position / total - time.monotonic()))
            self._open(habit, position)

    def wait(self) -> None:
        """Reads bytewise where that is the habit, until a line comes."""
        bytewise = [key for key in self._selector.get_map().values() if key.data[0] is Habit.BYTEWISE]
        commands = selectors.DefaultSelector()
        commands.register(sys.stdin, selectors.EVENT_READ)
        for key in cycle(bytewise):
            if commands.select(self._crowd.byte_every_s / len(bytewise)):
                return
            self._read(key, 1)
        commands.select()

    def read_out(self) -> None:
        """Everything that is still to be had."""
        deadline = time.monotonic() + PATIENCE_S
        while self._selector.get_map() and time.monotonic() < deadline:
            for key, _ in self._selector.select(0.2):
                self._read(key, MOST_READ)

    def heard(self) -> list[tuple[Habit, str, Heard]]:
        """Of every reader its habit, its prompt, and what it got."""
        return [(habit, prompt, reader.heard()) for habit, prompt, reader in self._readers]

    def close(self) -> None:
        for key in tuple(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _open(self, habit: Habit, position: int) -> None:
        crowd = self._crowd
        endpoint = connect(crowd.host, crowd.port, crowd.receive_buffer_bytes)
        prompt = f"{position}: tell me a long story"
        body: dict[str, Any] = {
            "model": crowd.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": crowd.max_tokens,
            # with them more is held back for a token, so that these outgrow their buffer and the others don't
            "return_token_ids": habit is not Habit.BYTEWISE,
        }
        reader: Reader
        if habit is Habit.SOCKET:
            reader = SocketReader(endpoint, body, f"ws://{crowd.host}:{crowd.port}/v1/stream")
        else:
            reader = SseReader(endpoint, body)
        endpoint.setblocking(False)
        self._readers.append((habit, prompt, reader))
        self._selector.register(endpoint, selectors.EVENT_READ, (habit, reader))

    def _read(self, key: selectors.SelectorKey, most: int) -> None:
        reader: Reader = key.data[1]
        try:
            data = key.fileobj.recv(most)  # type: ignore[union-attr]
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if data:
            reader.feed(data)
        if (not data or reader.done) and key.fd in self._selector.get_map():
            self._selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]


def _mixed(readers: dict[Habit, int]) -> Iterator[Habit]:
    """Each habit as often as it shall be, evenly spread."""
    places = [((number + 0.5) / count, habit) for habit, count in readers.items() for number in range(count)]
    return (habit for _, habit in sorted(places))


def summary(heard: list[tuple[Habit, str, Heard]]) -> dict[str, Any]:
    """By habit: how many ended how, frames per token of those that are complete, and the codes."""
    return {habit: _of([one for its, _, one in heard if its is habit]) for habit in Habit}


def _of(heard: list[Heard]) -> dict[str, Any]:
    complete = [one for one in heard if one.end is End.COMPLETE]
    tokens = sum(one.tokens for one in complete)
    return {
        **{end.value: sum(one.end is end for one in heard) for end in End},
        "frames_per_token": sum(one.frames for one in complete) / tokens if tokens else None,
        "codes": dict(Counter(one.code for one in heard if one.code)),
    }


def main() -> None:
    crowd = Crowd(SlowCrowd.from_json(sys.argv[1]))
    crowd.arrive()
    print("open", flush=True)
    crowd.wait()
    crowd.read_out()
    print(json.dumps(summary(crowd.heard())), flush=True)


if __name__ == "__main__":
    main()
