"""Both loops against the reference server, which thereby is tested, too."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from benchmarks.reference_sse import Stream, TokenClock
from loadtest.driver.control import DriverError, DriverProcess
from loadtest.driver.load import Load
from loadtest.driver.loop import LoadLoop
from loadtest.driver.stats import Snapshot

TOKENS = 5


@asynccontextmanager
async def reference() -> AsyncIterator[int]:
    clock = TokenClock(0.001)
    server = await asyncio.get_running_loop().create_server(lambda: Stream(clock, 0.0), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        clock.stop()
        server.close()


async def load_until(loop: LoadLoop, requests: int) -> Snapshot:
    await loop.start()
    async with asyncio.timeout(20):
        while loop.tally.finished + loop.tally.failed < requests:
            await asyncio.sleep(0.005)
    return await loop.stop(patience_s=10)


@pytest.mark.parametrize("shape", [{"concurrency": 8}, {"concurrency": 2, "rate": 200.0}, {"stream": False}])
async def test_every_request_that_was_started_is_answered_and_counted(shape: dict[str, Any]) -> None:
    async with reference() as port:
        load = Load(host="127.0.0.1", port=port, model="m", max_tokens=TOKENS, **shape)
        counts = await load_until(LoadLoop(load), 60)
    assert counts.failed == 0, counts.errors
    assert counts.started == counts.finished >= 60
    assert counts.finished_tokens == counts.finished * TOKENS
    if load.stream:
        assert counts.content_frames == counts.finished_frames == counts.finished_tokens


async def test_a_closed_loop_never_has_more_requests_than_connections() -> None:
    async with reference() as port:
        load = Load(host="127.0.0.1", port=port, model="m", max_tokens=TOKENS, concurrency=3)
        loop = LoadLoop(load)
        await loop.start()
        async with asyncio.timeout(20):
            while loop.tally.finished < 30:
                assert loop.tally.started - loop.tally.finished <= 3
                await asyncio.sleep(0.002)
        await loop.stop(patience_s=10)


async def test_nobody_listening_is_said_by_the_child_process() -> None:
    async with reference() as port:
        pass
    load = Load(host="127.0.0.1", port=port, model="m")
    async with DriverProcess(load) as driver:
        with pytest.raises(DriverError, match="nobody answers"):
            await driver.snapshot()


async def test_a_child_process_counts_as_the_loop_does() -> None:
    async with reference() as port:
        load = Load(host="127.0.0.1", port=port, model="m", max_tokens=TOKENS, concurrency=4)
        async with DriverProcess(load) as driver, asyncio.timeout(20):
            while (await driver.snapshot()).finished < 20:
                await asyncio.sleep(0.01)
            final = await driver.stop()
    assert final.started == final.finished
    assert final.finished_tokens == final.finished * TOKENS
