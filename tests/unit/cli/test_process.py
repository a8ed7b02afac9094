"""The supervisor of one process, with children that live, crash, hang and leave things behind."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from tests.unit.cli.conftest import Supervised, gone, grandchild_of
from tokenfleet.cli.local_fleet import FleetStartError, process

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="a Linux facility")


async def test_ready_then_stopped(supervised: Supervised) -> None:
    child = supervised.start()
    await child.wait_ready()
    pid = child.pid
    assert pid is not None
    assert child.state == "ready"
    assert await child.stop(5)
    assert child.pid is None
    assert await gone(pid)
    assert supervised.kinds() == ["started", "ready", "stopping", "stopped"]


async def test_ready_for_a_moment_is_ready_after_a_start(supervised: Supervised) -> None:
    """A probe's answers may come faster than whoever waits for them gets to look."""
    process = supervised.start(probe=Wavering())
    await process.wait_ready()
    assert process.state == "live"


class Wavering:
    """Alive and ready, and in the same turn of the event loop no longer ready."""

    async def follow(self) -> AsyncIterator[bool]:
        yield True
        yield False
        await asyncio.Event().wait()


async def test_leads_its_own_session_so_that_a_terminal_does_not_reach_it(supervised: Supervised) -> None:
    child = supervised.start()
    await child.wait_ready()
    assert child.pid is not None
    assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid


async def test_a_killed_process_gets_another_life(supervised: Supervised) -> None:
    child = supervised.start()
    await child.wait_ready()
    first = child.pid
    child.kill(signal.SIGKILL)
    await child.wait_ready()
    assert child.pid not in (None, first)
    assert child.restarts == 1
    crashed = next(event for event in supervised.events if event.kind == "crashed")
    assert "was killed by SIGKILL" in crashed.detail


async def test_without_restart_it_stays_dead(supervised: Supervised) -> None:
    child = supervised.start(restart=False)
    await child.wait_ready()
    child.kill(signal.SIGKILL)
    with pytest.raises(FleetStartError, match="was killed by SIGKILL"):
        await child.wait_ready()
    assert child.restarts == 0
    assert child.state == "failed"
    child.start()
    await child.wait_ready()


async def test_crashes_at_start_are_not_repeated_for_ever(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "FIRST_BACKOFF_S", 0.001)
    child = supervised.start("--exit", "1")
    with pytest.raises(FleetStartError, match="child exited with code 1, 3 times in a row") as caught:
        await child.wait_ready()
    assert caught.value.log_tail.count("cannot go on: as told") == 1  # of the last life only
    assert supervised.kinds() == ["started", "crashed"] * 2 + ["started", "failed"]


async def test_bad_settings_are_not_tried_twice(supervised: Supervised) -> None:
    child = supervised.start("--exit", "2")
    with pytest.raises(FleetStartError, match="exited with code 2"):
        await child.wait_live()
    assert supervised.kinds() == ["started", "failed"]


async def test_a_command_that_does_not_exist_is_named(supervised: Supervised) -> None:
    child = supervised.start(restart=False)
    await child.stop(5)
    object.__setattr__(child.spec, "command", ("/nowhere/to/be/found",))
    child.start()
    with pytest.raises(FleetStartError, match="cannot run /nowhere/to/be/found"):
        await child.wait_ready()


async def test_a_process_deaf_to_sigterm_is_killed_after_its_grace(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "KILL_MARGIN_S", 0.05)
    child = supervised.start("--deaf")
    await child.wait_ready()
    pid = child.pid
    assert pid is not None
    assert not await child.stop(0.05)
    assert await gone(pid)
    assert "killed" in supervised.kinds()


async def test_what_a_killed_process_left_behind_is_gone_before_its_next_life(supervised: Supervised) -> None:
    child = supervised.start("--grandchild")
    await child.wait_ready()
    grandchild = grandchild_of(child)
    child.kill(signal.SIGKILL)
    await child.wait_live()
    assert await gone(grandchild)


async def test_stopping_during_back_off_ends_it(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "FIRST_BACKOFF_S", 3600.0)
    monkeypatch.setattr(process, "LONGEST_BACKOFF_S", 3600.0)
    child = supervised.start()
    await child.wait_ready()
    child.kill(signal.SIGKILL)
    waiting = asyncio.create_task(child.wait_ready())
    while child.state != "crashed":
        await asyncio.sleep(0.01)
    assert await child.stop(5)
    with pytest.raises(FleetStartError, match="stopped before it was ready"):
        await waiting


@linux_only
async def test_pinned_to_its_cores(supervised: Supervised) -> None:
    core = min(os.sched_getaffinity(0))
    child = supervised.start(cpus=(core,))
    await child.wait_ready()
    assert child.pid is not None
    assert os.sched_getaffinity(child.pid) == {core}


@linux_only
async def test_dies_with_its_supervisor(supervised: Supervised) -> None:
    supervisor = """
import asyncio, os, sys
from pathlib import Path
from tests.unit.cli.conftest import Supervised

async def main():
    child = Supervised(Path(sys.argv[1])).start()
    await child.wait_ready()
    print(child.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", supervisor, str(supervised.folder)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    process.kill()
    await process.wait()
    assert await gone(pid)
