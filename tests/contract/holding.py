"""Runs Hypothesis against a gateway that serves, and looks at what is left of it all afterwards."""

import asyncio
import gc
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from tests.contract.fake_fleet import FakeFleet, answer, gateway_on_fakes
from tests.contract.test_gateway_http import CHAT, chat
from tokenfleet.gateway.grpc.call import Call
from tokenfleet.gateway.http.guard import GuardedProtocol
from tokenfleet.gateway.http.websocket import Session
from tokenfleet.gateway.http.websocket_connection import WebSocketConnection
from tokenfleet.gateway.http.websocket_request import SocketRequest
from tokenfleet.gateway.sequence import Sequence

Value = TypeVar("Value")

PATIENCE_S = 10.0
# Whoever searches on purpose may ask for more, and then no two runs are alike.
MORE = int(os.environ.get("TOKENFLEET_TEST_EXAMPLES", "1"))
# Nothing that a client did may be a reason for these to live on.
SHORT_LIVED = (Call, GuardedProtocol, Sequence, Session, SocketRequest, WebSocketConnection)
# The test's own client keeps a connection open, and grpc the tracebacks of two calls that it has aborted.
REMAINING = Counter({"RuledConnection": 1, "Call": 2})
MORE_MEMORY_BYTES = 16 * 1024 * 1024


@asynccontextmanager
async def unharmed(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, **changed: Any
) -> AsyncIterator[FakeFleet]:
    """A gateway that has to be as good as new in the end: it serves, holds nothing and logged no accident."""
    async with gateway_on_fakes(**changed) as fleet:
        fleet.workers[0].longest = 20
        await serves(fleet)
        await fleet.idle()
        descriptors = psutil.Process().num_fds()
        yield fleet
        await serves(fleet)
        await fleet.idle()
        await nothing_left(descriptors)
    logged = "".join(capfd.readouterr())
    assert "Traceback" not in logged
    assert "[error" not in logged
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def serves(fleet: FakeFleet) -> None:
    """An ordinary client notices nothing."""
    response = await fleet.http.post(CHAT, json=chat())
    assert response.json()["choices"][0]["message"]["content"] == answer("hello", 20)


async def nothing_left(descriptors: int) -> None:
    """Until no connection, request or file is there that was not there before."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while (left := _left_behind()) or psutil.Process().num_fds() > descriptors:
        assert asyncio.get_running_loop().time() < deadline, f"left behind: {left or 'open files'}"
        await asyncio.sleep(0.05)


def _left_behind() -> Counter[str]:
    gc.collect()
    return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, SHORT_LIVED)) - REMAINING


async def holds(
    law: Callable[[Value], Awaitable[None]], values: SearchStrategy[Value], examples: int
) -> None:
    """Fails with the smallest value for which the law does not hold or takes too long, or when memory grows.

    Growing is what it does from one value to the next. What Hypothesis needs once (it reads all modules for
    their constants, and in a fresh clone makes its table of characters) it has got by a third of the values.
    """
    loop = asyncio.get_running_loop()
    resident: list[int] = []

    async def within_its_time(value: Value) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await law(value)

    @settings(
        max_examples=examples * MORE,
        derandomize=MORE == 1,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(values)
    def search(value: Value) -> None:
        asyncio.run_coroutine_threadsafe(within_its_time(value), loop).result(2 * PATIENCE_S)
        resident.append(psutil.Process().memory_info().rss)

    await asyncio.to_thread(search)
    assert resident[-1] - resident[len(resident) // 3] < MORE_MEMORY_BYTES
