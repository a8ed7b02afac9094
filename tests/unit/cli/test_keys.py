"""`tokenfleet keys new`, and that the gateway takes what it makes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.test_app import tokenfleet
from tokenfleet.gateway.api_keys.keyring import Keyring
from tokenfleet.v1 import common_pb2 as pb


def test_the_key_opens_what_has_its_line(tmp_path: Path) -> None:
    made = tokenfleet("keys", "new", "--tenant", "acme", "--priority", "batch", "--expires", "2100-01-01")
    key, line = made.stdout.splitlines()
    assert key not in made.stderr + line, "the key is shown once"
    (tmp_path / "keys").write_text(line)
    caller = Keyring(tmp_path / "keys").admit(f"Bearer {key}".encode())
    assert (caller.tenant, caller.ceiling) == ("acme", pb.PRIORITY_BATCH)


def test_keys_can_be_appended_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours, without a line break at the end")
    keys = [
        tokenfleet("keys", "new", "--tenant", tenant, "--append-to", str(file)).stdout.strip()
        for tenant in ("acme", "emca")
    ]
    keyring = Keyring(file)
    assert [keyring.admit(f"Bearer {key}".encode()).tenant for key in keys] == ["acme", "emca"]
    assert not any(key in file.read_text() for key in keys)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--tenant", "two words"), "--tenant: expected 1 to 128"),
        (("--tenant", "a", "--id", "#"), "--id: expected 1 to 128"),
        (
            ("--tenant", "a", "--priority", "urgent"),
            "--priority: expected one of interactive,",
        ),
        (("--tenant", "a", "--expires", "soon"), "--expires: expected a date"),
        (("--tenant", "a", "--append-to", "/nowhere/keys"), "--append-to /nowhere/keys: No such file"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(arguments: tuple[str, ...], complaint: str) -> None:
    refused = tokenfleet("keys", "new", *arguments)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"tokenfleet: {complaint}")
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1


def test_making_keys_needs_only_the_bare_install() -> None:
    program = (
        "import sys\n"
        "for name in ('structlog', 'uvicorn', 'xxhash', 'orjson', 'yaml'): sys.modules[name] = None\n"
        "from tokenfleet.cli.app import app\n"
        "app(['keys', 'new', '--tenant', 'acme'])\n"
    )
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("tfk_")
