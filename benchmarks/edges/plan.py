"""The load: ordinary streams that are measured, and crowds of others beside them.

The buffers are far smaller than the gateway's defaults, so that a stream of a minute fills them and the bound
on its memory is close to what there is to see.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum

from tokenfleet.gateway.http.guard import MOST_UNWRITTEN_BYTES

ITL_MS = 50
NORMAL_STREAMS = 100
NORMAL_TOKENS = 64

CROWD = 1_000
CROWD_TOKENS = 900
ARRIVAL_S = 15.0

UNSENT_BYTES = 8 * 1024
CLIENT_BUFFER_BYTES = 8 * 1024
# In the process: frames that the kernel did not take, and text that is held back behind them.
BUFFER_BYTES = MOST_UNWRITTEN_BYTES + CLIENT_BUFFER_BYTES


class Habit(StrEnum):
    """How a client of the crowd reads."""

    SILENT = "reads nothing"
    BYTEWISE = "reads a byte at a time"
    SOCKET = "reads nothing of a WebSocket"


@dataclass(frozen=True, slots=True)
class SlowCrowd:
    """Which slow readers to make."""

    host: str
    port: int
    model: str
    readers: dict[Habit, int]
    max_tokens: int = CROWD_TOKENS
    arrival_s: float = ARRIVAL_S
    receive_buffer_bytes: int = 4096
    byte_every_s: float = 1.0  # to each of those that read bytewise

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SlowCrowd:
        values = json.loads(text)
        readers = {Habit(name): count for name, count in values.pop("readers").items()}
        return cls(readers=readers, **values)


def shares(crowd: int) -> dict[Habit, int]:
    """Half of a crowd reads nothing, four tenths byte by byte, and the rest nothing of a WebSocket."""
    silent, bytewise = crowd // 2, 2 * crowd // 5
    return {Habit.SILENT: silent, Habit.BYTEWISE: bytewise, Habit.SOCKET: crowd - silent - bytewise}
