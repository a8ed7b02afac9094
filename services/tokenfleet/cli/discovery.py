"""Which fleet a command means: the one that runs on this machine, unless another is named."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenfleet.cli.errors import CliError
from tokenfleet.cli.local_fleet.state import default_root, running_fleets


def local_fleet(port: int | None, *, elsewhere: str) -> dict[str, Any]:
    """The record of the fleet that runs here, on `port` where several do.

    `elsewhere` is how the calling command names a fleet on another machine. Raises CliError.
    """
    root = default_root()
    fleets = [each for each in running_fleets(root) if port in (None, each["http_port"])]
    if len(fleets) == 1:
        return fleets[0]
    if fleets:
        ports = ", ".join(str(each["http_port"]) for each in fleets)
        raise CliError(f"several fleets run, on ports {ports}: choose one with --port")
    where = f" on port {port}" if port else ""
    raise CliError(
        f"no fleet runs{where} on this machine (looked in {root}). Start one with: {own_command()} up; "
        f"or name one elsewhere with: {own_command()} {elsewhere}"
    )


def process_address(record: Mapping[str, Any], role: str) -> str:
    """host:port of the gRPC of the fleet's process with this role, which it has once."""
    address: str = next(each["address"] for each in record["processes"] if each["role"] == role)
    return address


def reachable(address: str) -> str:
    """An address that a fleet listens on, as one that can be called."""
    return address.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")


def own_command() -> str:
    """How the person at the terminal can call this program again."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m tokenfleet.cli"
    found = shutil.which("tokenfleet")
    if called.name == "tokenfleet" and not (found and Path(found).resolve() == called.resolve()):
        return os.path.relpath(called)
    return "tokenfleet"
