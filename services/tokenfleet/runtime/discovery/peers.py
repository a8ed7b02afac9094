"""What a peer is, and how settings name peers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from tokenfleet.runtime.settings import Targets, split_address

SCHEME = "kubernetes://"

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_REFERENCE = re.compile(
    rf"kubernetes://(?P<service>{_LABEL})(\.(?P<namespace>{_LABEL}))?(:(?P<port>[a-z0-9-]{{1,63}}))?"
)


@dataclass(slots=True, frozen=True)
class Peer:
    """An address, and what the cluster says about the process behind it.

    `terminating`: it goes away, so nothing new for it; `ready`: its readiness, as the cluster last saw it.
    `name` is the pod's, and it and `zone` are empty where nobody tells.
    """

    target: str
    zone: str = ""
    name: str = ""
    ready: bool = True
    terminating: bool = False


@dataclass(slots=True, frozen=True)
class ServiceRef:
    """A Kubernetes Service. `port` is a port's name, or a number; empty where only the pods matter."""

    service: str
    namespace: str = ""  # empty: the one this process runs in
    port: str = ""

    @classmethod
    def parse(cls, text: str) -> ServiceRef:
        """Raises ValueError with the remedy."""
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!r} names no Service: write {SCHEME}SERVICE:PORT or {SCHEME}SERVICE.NAMESPACE:PORT, "
                f"for example {SCHEME}workers:grpc"
            )
        return cls(match["service"], match["namespace"] or "", match["port"] or "")

    def __str__(self) -> str:
        where = f".{self.namespace}" if self.namespace else ""
        return f"{SCHEME}{self.service}{where}" + (f":{self.port}" if self.port else "")


def _known_peers(targets: list[str]) -> list[str]:
    # a registry's record is made of what is defined here
    from tokenfleet.runtime.discovery.registry import SCHEMES, RegistryRef

    for target in targets:
        if target.startswith(SCHEMES):
            RegistryRef.parse(target)
        elif not target.startswith(SCHEME):
            split_address(target)
        elif not ServiceRef.parse(target).port:
            raise ValueError(f"{target!r} names no port: append its name or number, as in {target}:grpc")
    return list(dict.fromkeys(targets))


# Addresses (`host:port`), Services (`kubernetes://SERVICE[.NAMESPACE]:PORT`) and registries
# (`redis://HOST:PORT/0#NAME`), each once.
PeerTargets = Annotated[Targets, AfterValidator(_known_peers)]
