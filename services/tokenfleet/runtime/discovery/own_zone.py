"""The zone of this process: configured, or read from the endpoint that the cluster lists for its own pod.

Kubernetes does not tell a pod which zone it is in; its Service's EndpointSlices do, and anybody who may watch
its peers may read them.
"""

from __future__ import annotations

import socket
from typing import Annotated

from pydantic import AfterValidator

from tokenfleet.runtime.discovery.peers import SCHEME, ServiceRef
from tokenfleet.runtime.discovery.service_watch import ServiceWatch
from tokenfleet.runtime.telemetry import get_logger

log = get_logger(__name__)


def _known_zone(zone: str) -> str:
    if zone.startswith(SCHEME):
        ServiceRef.parse(zone)
    return zone


# A zone, or the own Service (`kubernetes://SERVICE[.NAMESPACE]`) to look it up in.
ZoneName = Annotated[str, AfterValidator(_known_zone)]


class OwnZone:
    """`name` is empty until the zone is known. The pod's name is the host's, as Kubernetes sets it."""

    def __init__(self, setting: str, pod: str = "") -> None:
        self._pod = pod or socket.gethostname()
        looked_up = setting.startswith(SCHEME)
        self.name = "" if looked_up else setting
        self._watch = ServiceWatch(ServiceRef.parse(setting), self._look) if looked_up else None

    def start(self) -> None:
        if self._watch is not None:
            self._watch.start()

    async def stop(self) -> None:
        if self._watch is not None:
            await self._watch.stop()

    def _look(self) -> None:
        assert self._watch is not None
        peers = (self._watch.peers or {}).values()
        zone = next((peer.zone for peer in peers if peer.name == self._pod and peer.zone), self.name)
        if zone != self.name:
            log.info("own zone", zone=zone, pod=self._pod)
            self.name = zone
