"""What a person reads while a fleet starts, runs and stops, when the output is no terminal."""

import pytest

from tokenfleet.cli.local_fleet import FleetEvent
from tokenfleet.cli.narrator import Narrator
from tokenfleet.v1 import common_pb2

Progress = common_pb2.LoadProgress


def test_a_start_a_crash_and_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    with Narrator(["router", "worker-0"], "/state/logs") as narrator:
        assert capsys.readouterr().out == ""
        narrator.happened(FleetEvent("router", "started"))
        narrator.happened(FleetEvent("router", "ready"))
        for done in (1_000_000, 40_000_000):
            narrator.loading(
                Progress(model="m", stage=Progress.STAGE_FETCHING, bytes_done=done, bytes_total=93_000_000)
            )
        narrator.happened(FleetEvent("worker-0", "ready"))
        narrator.loading(Progress(model="m", stage=Progress.STAGE_READY))
        narrator.running()
        narrator.happened(FleetEvent("worker-0", "crashed", "was killed by SIGKILL; starts again in 0.2 s"))
        narrator.happened(FleetEvent("worker-0", "started"))
        narrator.happened(FleetEvent("worker-0", "ready"))
        narrator.stopping("stopping")
        narrator.happened(FleetEvent("worker-0", "stopped"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "starting 2 processes; their logs are in /state/logs"
    assert lines[1] == "m: fetching 1 of 93 MB"
    assert lines[2].startswith("all processes are ready after ")
    assert lines[3:] == [
        "m: ready",
        "worker-0 was killed by SIGKILL; starts again in 0.2 s; log: /state/logs/worker-0.log",
        "worker-0 is ready again",
        "",
        "stopping",
        "  worker-0 stopped",
    ]


def test_long_lines_stay_whole_so_that_they_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    with Narrator(["router"], "/state/logs") as narrator:
        narrator.say("curl [not-markup] " + "x" * 300)
    assert capsys.readouterr().out == "curl [not-markup] " + "x" * 300 + "\n"
