"""Who the peers are: addresses that were configured, or the endpoints of a Kubernetes Service as they change.

A service names its peers in one list. An entry is an address (`host:port`), or a Service
(`kubernetes://workers.fleet:grpc`) whose EndpointSlices are watched; so there is no discovery mode that could
contradict the list. Whoever depends on peers learns of each through three calls: came, changed, left.
"""

from tokenfleet.runtime.discovery.discovery import Discovery, PeerListener
from tokenfleet.runtime.discovery.own_zone import OwnZone, ZoneName
from tokenfleet.runtime.discovery.peers import Peer, PeerTargets, ServiceRef

__all__ = ["Discovery", "OwnZone", "Peer", "PeerListener", "PeerTargets", "ServiceRef", "ZoneName"]
