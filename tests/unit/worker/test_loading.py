"""A load job tells everybody the latest, and a fetch nobody waits for to stop."""

import asyncio

import pytest

from tokenfleet.runtime.changes import Changes
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.loading import LoadAbandoned, LoadJob, Stage


async def test_followers_get_stages_in_order_and_the_last_one() -> None:
    job = LoadJob("m", "w-1")

    async def follow() -> list[int]:
        return [progress.stage async for progress in job.follow()]

    followers = [asyncio.create_task(follow()) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.to_thread(job.report, Stage.STAGE_FETCHING, 5, 10)
    await asyncio.sleep(0)
    job.ready()
    for stages in await asyncio.gather(*followers):
        assert stages[0] == Stage.STAGE_QUEUED
        assert stages[-1] == Stage.STAGE_READY
        assert stages == sorted(stages)


async def test_a_late_follower_gets_only_the_end() -> None:
    job = LoadJob("m", "w-1")
    job.failed(FleetError(common_pb2.REASON_LOAD_FAILED, "no such file"))
    progress = [one async for one in job.follow()]
    assert [one.stage for one in progress] == [Stage.STAGE_FAILED]
    assert progress[0].failure.message == "no such file"


async def test_a_report_to_a_job_that_is_over_stops_the_reporter() -> None:
    job = LoadJob("m", "w-1")
    job.failed(FleetError(common_pb2.REASON_LOAD_FAILED, "the worker is stopping"))
    with pytest.raises(LoadAbandoned):
        await asyncio.to_thread(job.report, Stage.STAGE_FETCHING, 1, 10)


async def test_bytes_are_reported_at_a_pace_and_to_the_end() -> None:
    job = LoadJob("m", "w-1")
    seen: list[int] = []

    async def follow() -> None:
        async for progress in job.follow():
            seen.append(progress.bytes_done)

    following = asyncio.create_task(follow())
    for done in range(1, 101):
        job.report(Stage.STAGE_FETCHING, done, 100)
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    job.ready()
    await following
    assert len(seen) < 20
    assert 100 in seen


async def test_a_change_between_two_waits_is_not_missed() -> None:
    changes = Changes()
    seen = changes.version
    changes.notify()
    assert await changes.after(seen, 0)
    assert not await changes.after(changes.version, 0.001)
    waiting = asyncio.create_task(changes.after(changes.version, 10))
    await asyncio.sleep(0)
    changes.notify()
    assert await waiting
