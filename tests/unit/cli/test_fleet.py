"""The supervisor of a whole fleet, with tiny children in the services' places."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.unit.cli.child import SLEEPER
from tests.unit.cli.conftest import child_spec, gone, grandchild_of
from tokenfleet.cli.local_fleet import (
    FleetAlreadyRunsError,
    FleetEvent,
    FleetSpec,
    FleetStartError,
    LocalFleet,
    PortTakenError,
    ProcessSpec,
    spec,
)
from tokenfleet.cli.local_fleet.ports import PortReservation
from tokenfleet.cli.local_fleet.state import FLEET_ID_VARIABLE, StateDir, read_record, running_fleets

Children = Callable[..., FleetSpec]


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Children:
    """Makes a spec whose processes are children; flags for a process by its name with underscores."""

    def make(**flags: tuple[str, ...]) -> FleetSpec:
        def plan(fleet: FleetSpec, layout: object) -> list[ProcessSpec]:
            del layout
            return [
                child_spec(tmp_path, name, *flags.get(name.replace("-", "_"), ()), role=spec._role(name))
                for name in fleet.process_names()
            ]

        monkeypatch.setattr(spec, "plan", plan)
        return FleetSpec(state_dir=tmp_path / "state" / "8080")

    return make


async def test_starts_everything_and_stops_it_in_order(children: Children) -> None:
    events: list[FleetEvent] = []
    async with LocalFleet(children(), events.append) as fleet:
        assert {process.state for process in fleet.processes.values()} == {"ready"}
        pids = [fleet.pid(name) for name in fleet.processes]
    stopped = [event.process for event in events if event.kind == "stopped"]
    phases = [
        ["gateway"],
        ["router", "tokenizer-0", "tokenizer-1"],
        ["worker-0", "worker-1"],
        ["model-loader"],
        ["store"],
    ]
    for phase in phases:
        assert sorted(stopped[: len(phase)]) == phase
        del stopped[: len(phase)]
    assert all([await gone(pid) for pid in pids])


async def test_is_found_while_it_runs_and_only_then(children: Children) -> None:
    wanted = children()
    root = wanted.state_dir.parent
    async with LocalFleet(wanted) as fleet:
        (record,) = running_fleets(root)
        assert record["pid"] == os.getpid()
        assert record["http"] == fleet.http_address
        assert {each["name"]: each["pid"] for each in record["processes"]} == {
            name: fleet.pid(name) for name in fleet.processes
        }
        fleet.kill("worker-0")
        await fleet.wait_ready("worker-0")
        worker = next(
            each for each in read_record(wanted.state_dir)["processes"] if each["name"] == "worker-0"
        )
        assert (worker["restarts"], worker["state"]) == (1, "ready")
    assert list(running_fleets(root)) == []


async def test_a_second_fleet_in_the_same_place_is_refused(children: Children) -> None:
    wanted = children()
    async with LocalFleet(wanted) as fleet:
        with pytest.raises(
            FleetAlreadyRunsError, match=f"a fleet already runs on port .*, pid {os.getpid()}"
        ):
            await LocalFleet(wanted).start()
        assert fleet.processes["gateway"].state == "ready"


async def test_a_taken_port_is_refused_before_anything_starts(children: Children, tmp_path: Path) -> None:
    children()
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(PortTakenError):
        async with LocalFleet(FleetSpec(state_dir=tmp_path / "other", http_port=port)):
            pass
    assert os.listdir(tmp_path / "other" / "logs") == []
    server.close()


async def test_one_that_does_not_start_fails_the_fleet_and_takes_the_others_down(children: Children) -> None:
    events: list[FleetEvent] = []
    with pytest.raises(FleetStartError, match="router exited with code 2") as caught:
        async with LocalFleet(children(router=("--exit", "2")), events.append):
            pass
    assert caught.value.process == "router"
    assert "cannot go on: as told" in str(caught.value)
    started = {event.process for event in events if event.kind == "started"}
    ended = {event.process for event in events if event.kind in ("stopped", "failed")}
    assert started == ended


async def test_a_process_that_ends_for_good_is_noticed(children: Children) -> None:
    async with LocalFleet(replace(children(), restart=False)) as fleet:
        noticing = asyncio.create_task(fleet.wait_given_up())
        fleet.kill("tokenizer-1")
        failure = await noticing
        assert failure.process == "tokenizer-1"
        assert "was killed by SIGKILL" in str(failure)


async def test_what_escaped_its_session_is_found_and_ended(children: Children) -> None:
    fleet = LocalFleet(children(worker_1=("--orphan",)))
    await fleet.start()
    orphan = grandchild_of(fleet.processes["worker-1"])
    report = await fleet.stop()
    assert report.killed == []
    assert len(report.left_behind) == 1
    assert f"pid {orphan}" in report.left_behind[0]
    assert await gone(orphan)


def start_and_forget(environment: dict[str, str]) -> int:
    """A process whose parent is gone."""
    shell = ("sh", "-c", '"$@" >/dev/null & echo $!', "sh", *SLEEPER)
    return int(subprocess.run(shell, env=environment, stdout=subprocess.PIPE, check=True).stdout)


async def test_what_a_killed_supervisor_left_behind_is_ended_by_the_next(children: Children) -> None:
    wanted = children()
    pid = start_and_forget({**os.environ, FLEET_ID_VARIABLE: "dead"})
    dead = StateDir(wanted.state_dir)
    dead.lock()
    dead.write_record({"fleet_id": "dead", "pid": 1, "http_port": 8080})
    os.close(dead._lock_fd)
    async with LocalFleet(wanted) as fleet:
        assert len(fleet.predecessors) == 1
        assert f"pid {pid}" in fleet.predecessors[0]
    assert await gone(pid)


async def test_the_log_of_the_run_before_is_kept(children: Children) -> None:
    wanted = children()
    for _ in range(2):
        async with LocalFleet(wanted) as fleet:
            pid = fleet.pid("router")
    logs = wanted.state_dir / "logs"
    assert (logs / "router.log").read_text() == f"child {pid} starts\n"
    assert (logs / "router.previous.log").read_text() != f"child {pid} starts\n"


def test_a_long_state_directory_gets_a_short_socket_path(tmp_path: Path) -> None:
    state = StateDir(tmp_path / ("long" * 30))
    state.prepare_temporary(state.lock())
    path = state.socket_path("store.sock")
    assert len(str(path)) < 100
    assert path.parent.is_dir()
    state.unlock()
    assert not path.parent.exists()


async def test_temporary_files_go_with_the_fleet(children: Children) -> None:
    """Also those of a process that was killed and could not remove them itself."""
    wanted = children()
    async with LocalFleet(wanted) as fleet:
        folder = Path(psutil.Process(fleet.pid("worker-0")).environ()["TMPDIR"])
        assert str(folder) == read_record(wanted.state_dir)["temporary"]
        (folder / "tokenfleet-engine").mkdir()
        fleet.kill("worker-0")
        await fleet.wait_ready("worker-0")
        assert folder.is_dir(), "its next life needs it"
    assert not folder.exists()


@pytest.mark.parametrize("name", ["short", "long" * 30])
def test_temporary_files_of_a_killed_fleet_go_with_the_next(tmp_path: Path, name: str) -> None:
    def begin() -> tuple[StateDir, Path]:
        state = StateDir(tmp_path / name)
        folder = state.prepare_temporary(state.lock())
        state.write_record({"temporary": str(folder)})
        return state, folder

    killed, left = begin()
    (left / "llama.sock").touch()
    os.close(killed._lock_fd)  # as the kernel does
    state, folder = begin()
    assert os.listdir(folder) == []
    assert left == folder or not left.exists()
    state.unlock()
    assert not folder.exists()


def test_no_folder_is_removed_on_the_word_of_a_broken_record(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    state = StateDir(tmp_path / "8080")
    state.lock()
    state.prepare_temporary({"temporary": str(precious)})
    state.unlock()
    assert precious.is_dir()


@pytest.mark.skipif(sys.platform != "linux", reason="ports stay reserved on Linux only")
async def test_two_fleets_never_get_the_same_ports(children: Children, tmp_path: Path) -> None:
    one, two = PortReservation(), PortReservation()
    assert not set(one.take(50)) & set(two.take(50))
    one.release()
    two.release()
