"""Processes that belong to a fleet, found by the mark in their environment rather than by their parents.

A process whose parent died belongs to nobody in the process tree; its environment still says where it is
from.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from tokenfleet.cli.local_fleet.state import FLEET_ID_VARIABLE

if TYPE_CHECKING:
    import psutil

_WAIT_S = 5.0


def members(fleet_id: str, sessions: Collection[int] = ()) -> list[psutil.Process]:
    """All running processes that a fleet started, children of children included.

    `sessions` are those of processes that ran a moment ago: a program that writes its title over its
    environment is found there.
    """
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(FLEET_ID_VARIABLE) == fleet_id or os.getsid(process.pid) in sessions
            if ours and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process)
        except (psutil.Error, OSError):
            # gone meanwhile, or somebody else's
            continue
    return found


def end_all(fleet_id: str, sessions: Collection[int] = ()) -> list[str]:
    """Kills what a fleet left behind; answers what it was, for people."""
    import psutil

    found = members(fleet_id, sessions)
    described = []
    for process in found:
        try:
            described.append(f"pid {process.pid} ({' '.join(process.cmdline()) or process.name()})")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(found, timeout=_WAIT_S)
    return described
