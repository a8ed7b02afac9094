"""Clients that open streams and don't read them hurt nobody but themselves."""

import asyncio
from pathlib import Path

import pytest

from benchmarks._proc import resident_mb
from benchmarks.edges.plan import Habit, SlowCrowd
from benchmarks.edges.readers import End
from benchmarks.edges.slow_readers import Crowd
from tests.e2e.judging import disagreements
from tests.e2e.sim_fleet import scrape, sim_fleet
from tests.e2e.streams import Answered, chat

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

NORMAL, TOKENS = 10, 200
SLOW = {Habit.SILENT: 50, Habit.BYTEWISE: 30, Habit.SOCKET: 20}
SLOW_TOKENS = 600
FLAGS = ("--unsent-bytes", "4096", "--client-buffer-bytes", "4096")
# What the gateway keeps for a stream however fast it is read, its ids above all; unread frames would come to
# three times that.
MOST_KB_PER_STREAM = 100
RUNNING = "tokenfleet_worker_requests_running"
SLOW_CONSUMERS = 'tokenfleet_gateway_requests_total{code="slow_consumer"}'


async def until(url: str, name: str, value: float) -> None:
    async with asyncio.timeout(90):
        while await scrape(url, name) != value:
            await asyncio.sleep(0.1)


async def normal_streams(url: str) -> list[Answered]:
    async with asyncio.timeout(90):
        return await asyncio.gather(*(chat(url, "sim", f"normal {n}", TOKENS) for n in range(NORMAL)))


async def test_slow_readers_are_merged_or_cut_off_and_nobody_else_notices(tmp_path: Path) -> None:
    async with sim_fleet(tmp_path, workers=1, itl_ms=20, flags={"gateway": FLAGS}) as fleet:
        metrics = f"{fleet.http_url}/metrics"
        reference = {answer.prompt: answer.text for answer in await normal_streams(fleet.http_url)}
        gateway = [fleet.pid("gateway")]
        before_mb = resident_mb(gateway)

        host, _, port = fleet.http_address.rpartition(":")
        crowd = Crowd(SlowCrowd(host, int(port), "sim", SLOW, max_tokens=SLOW_TOKENS, arrival_s=2))
        try:
            await asyncio.to_thread(crowd.arrive)
            answers = await normal_streams(fleet.http_url)
            await until(metrics, SLOW_CONSUMERS, SLOW[Habit.SILENT] + SLOW[Habit.SOCKET])
            await until(f"http://{fleet.metrics_addresses['worker-0']}/metrics", RUNNING, 0)
            grown_kb = 1000 * (resident_mb(gateway) - before_mb) / sum(SLOW.values())
            await asyncio.to_thread(crowd.read_out)
        finally:
            crowd.close()

        assert not disagreements(reference, answers, TOKENS)
        assert grown_kb < MOST_KB_PER_STREAM
        for habit, prompt, heard in crowd.heard():
            if habit is Habit.BYTEWISE:
                assert heard.end is End.COMPLETE
                assert heard.tokens == SLOW_TOKENS
                assert heard.frames < SLOW_TOKENS / 2, "what was held back was not merged"
            else:
                assert heard.end is not End.COMPLETE
                assert heard.code in ("", "slow_consumer"), prompt
        late = [(prompt, heard.text) for habit, prompt, heard in crowd.heard() if habit is Habit.BYTEWISE][:3]
        for prompt, text in late:
            assert text == (await chat(fleet.http_url, "sim", prompt, SLOW_TOKENS)).text
