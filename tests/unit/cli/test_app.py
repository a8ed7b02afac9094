"""The command line as a person meets it, short of starting a fleet."""

import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tokenfleet import __version__
from tokenfleet.cli import up
from tokenfleet.cli.errors import CliError
from tokenfleet.cli.local_fleet.ports import PortReservation
from tokenfleet.cli.up import UpOptions


def tokenfleet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tokenfleet.cli", *arguments], capture_output=True, text=True, check=False
    )


def options(tmp_path: Path, port: int, **changes: object) -> UpOptions:
    values: dict[str, object] = {
        "host": "127.0.0.1",
        "port": port,
        "grpc_port": None,
        "workers": 2,
        "tokenizers": 2,
        "routers": 1,
        "zones": ("zone-a",),
        "engines": ("sim",),
        "catalog": None,
        "state_dir": tmp_path,
        "grace_s": 1.0,
        **changes,
    }
    return UpOptions(**values)  # type: ignore[arg-type]


def test_help_teaches_by_example() -> None:
    for arguments, example in (((), "tokenfleet up"), (("up",), "--port 8090"), (("status",), "--json | jq")):
        shown = tokenfleet(*arguments, "--help")
        assert shown.returncode == 0
        assert example in shown.stdout


def test_version() -> None:
    assert tokenfleet("version").stdout == f"tokenfleet {__version__}\n"


def test_what_help_needs_is_light() -> None:
    heavy = "sorted({'grpc', 'psutil', 'rich.progress', 'asyncio', 'pydantic'} & set(sys.modules))"
    script = f"import sys, tokenfleet.cli.app; print({heavy})"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_an_error_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "tokenfleet.cli", "status"],
        capture_output=True,
        text=True,
        check=False,
        env={"TOKENFLEET_STATE": str(tmp_path), "PATH": ""},
    )
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert shown.stderr.startswith("tokenfleet: no fleet runs on this machine")
    assert shown.stderr.count("\n") == 1


def test_a_busy_port_is_one_line_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(CliError) as caught:
            up.run_fleet(options(tmp_path, port))
    message = str(caught.value)
    assert message.startswith(f"port {port} on 127.0.0.1 is taken by pid ")
    assert "make run PORT=" in message
    assert "\n" not in message
    assert capsys.readouterr().out == ""


def test_the_grpc_port_is_checked_too(tmp_path: Path) -> None:
    reservation = PortReservation()
    (free,) = reservation.take(1)
    reservation.release()
    with socket.create_server(("127.0.0.1", 0)) as server:
        busy = server.getsockname()[1]
        with pytest.raises(CliError, match=f"port {busy} on"):
            up.run_fleet(options(tmp_path, free, grpc_port=busy))


@pytest.mark.parametrize(
    ("port", "grpc_port", "told"), [(65535, None, "name one with --grpc-port"), (8080, 8080, "are both 8080")]
)
def test_ports_that_cannot_be_are_told(tmp_path: Path, port: int, grpc_port: int | None, told: str) -> None:
    with pytest.raises(CliError, match=told):
        up.run_fleet(options(tmp_path, port, grpc_port=grpc_port))


def test_the_first_call_survives_a_shell() -> None:
    words = shlex.split(up.first_call("http://127.0.0.1:8080", "it's-a-model"))
    assert words[:2] == ["curl", "http://127.0.0.1:8080/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == "it's-a-model"
