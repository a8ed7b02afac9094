"""What a worker is told is checked when it starts."""

from pathlib import Path

import pytest

from tokenfleet.runtime.settings import load_settings
from tokenfleet.worker.engines.registry import ENGINES
from tokenfleet.worker.machine import memory_limit_bytes, oom_kills
from tokenfleet.worker.settings import WorkerSettings


def test_flags_become_settings() -> None:
    settings = load_settings(WorkerSettings, ["--engines", "sim,llamacpp", "--threads", "3", "--zone", "z"])
    assert settings.engines == ["sim", "llamacpp"]
    assert (settings.engine_threads, settings.zone) == (3, "z")


def test_an_unknown_engine_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(WorkerSettings, ["--engines", "sim,llama"])
    error = capsys.readouterr().err
    assert "llama" in error
    assert ", ".join(sorted(ENGINES)) in error
    assert "TOKENFLEET_WORKER_ENGINES" in error


def test_arguments_for_an_unknown_engine_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(WorkerSettings, ["--engine-arguments", '{"simm": {}}'])
    error = capsys.readouterr().err
    assert "unknown engine 'simm'" in error
    assert "TOKENFLEET_WORKER_ENGINE_ARGUMENTS" in error


@pytest.mark.parametrize(("content", "expected"), [("4096\n", 4096), ("max\n", None)])
def test_a_container_s_limit_counts(tmp_path: Path, content: str, expected: int | None) -> None:
    file = tmp_path / "memory.max"
    file.write_text(content)
    everything = memory_limit_bytes(file.with_name("missing"))
    assert memory_limit_bytes(file) == (expected or everything)


def test_the_kernel_s_kills_for_memory_are_counted_where_it_counts_them(tmp_path: Path) -> None:
    container, machine = tmp_path / "memory.events", tmp_path / "vmstat"
    assert oom_kills((container, machine)) == 0
    machine.write_text("pgfault 12\noom_kill 3\nnr_free_pages 7\n")
    assert oom_kills((container, machine)) == 3
    container.write_text("low 0\noom 4\noom_kill 1\noom_group_kill 9\n")
    assert oom_kills((container, machine)) == 1
