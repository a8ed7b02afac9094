"""A whole fleet on one machine, as real processes under one supervisor.

`tokenfleet up`, the end-to-end tests and the benchmarks start their fleets here, so that what is tested and
measured is what runs: separate processes, real sockets, a real store. Nothing a fleet started may outlive it,
however its supervisor ends.

    async with LocalFleet(FleetSpec(state_dir=path, engines=("sim",))) as fleet:
        print(fleet.http_url, fleet.addresses["router"])
        fleet.kill("worker-0")
        await fleet.wait_ready("worker-0")  # its next life
"""

from tokenfleet.cli.local_fleet.errors import (
    FleetAlreadyRunsError,
    FleetStartError,
    LocalFleetError,
    PortTakenError,
)
from tokenfleet.cli.local_fleet.fleet import LocalFleet, StopReport
from tokenfleet.cli.local_fleet.process import FleetEvent, ManagedProcess
from tokenfleet.cli.local_fleet.security import FleetSecurity
from tokenfleet.cli.local_fleet.spec import FleetSpec, ProcessSpec

__all__ = [
    "FleetAlreadyRunsError",
    "FleetEvent",
    "FleetSecurity",
    "FleetSpec",
    "FleetStartError",
    "LocalFleet",
    "LocalFleetError",
    "ManagedProcess",
    "PortTakenError",
    "ProcessSpec",
    "StopReport",
]
