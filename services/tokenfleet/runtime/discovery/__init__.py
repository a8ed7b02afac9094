"""Who the peers are: addresses that were configured, or found in Kubernetes or a registry as they change.

A service names its peers in one list. An entry is an address (`host:port`), a Service
(`kubernetes://workers.fleet:grpc`) whose EndpointSlices are watched, or a registry
(`redis://store:6379/0#workers`) in which the peers keep leases; so there is no discovery mode that could
contradict the list. Whoever depends on peers learns of each through three calls: came, changed, left.
"""

from tokenfleet.runtime.discovery.discovery import Discovery, PeerListener
from tokenfleet.runtime.discovery.own_zone import OwnZone, ZoneName
from tokenfleet.runtime.discovery.peers import Peer, PeerTargets, ServiceRef
from tokenfleet.runtime.discovery.registration import Registration
from tokenfleet.runtime.discovery.registry import RegistryRef

__all__ = [
    "Discovery",
    "OwnZone",
    "Peer",
    "PeerListener",
    "PeerTargets",
    "Registration",
    "RegistryRef",
    "ServiceRef",
    "ZoneName",
]
