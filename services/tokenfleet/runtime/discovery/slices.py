"""EndpointSlices folded into peers: plain data in and out, so that every oddity of the API has a test.

A Service's endpoints are spread over several slices, and while the control plane moves one between slices it
is in two of them, or for a moment in an old one only. Slices of both IP families list the same pods twice;
only one family is used, or every worker would count double.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenfleet.runtime.discovery.peers import Peer

# The first family in which there is any endpoint is the one that is used.
_FAMILIES = ("IPv4", "IPv6", "FQDN")

Slice = Mapping[str, Any]


@dataclass(slots=True, frozen=True)
class _Endpoint:
    """One entry of one slice."""

    peer: Peer
    owner: str  # uid of the pod


class SliceTable:
    """The slices of one Service as they are known now, by their names."""

    def __init__(self, port: str) -> None:
        """`port`: the name of a port, or the number on which the pods listen; empty: the host alone."""
        self._port = port
        self._slices: dict[str, Slice] = {}

    def replace(self, slices: Iterable[Slice]) -> None:
        """The complete list: what is not in it is gone."""
        self._slices = {_name(one): one for one in slices}

    def apply(self, kind: str, changed: Slice) -> None:
        """One event of a watch: ADDED, MODIFIED or DELETED."""
        if kind == "DELETED":
            self._slices.pop(_name(changed), None)
        else:
            self._slices[_name(changed)] = changed

    def peers(self) -> dict[str, Peer]:
        """By address."""
        for family in _FAMILIES:
            found: dict[str, list[_Endpoint]] = {}
            for endpoint in self._endpoints(family):
                found.setdefault(endpoint.peer.target, []).append(endpoint)
            if found:
                return {target: _merge(entries) for target, entries in found.items()}
        return {}

    def port_names(self) -> list[str]:
        """What the slices call their ports, for the message about one that is not there."""
        names = {port.get("name") or "" for one in self._slices.values() for port in one.get("ports") or ()}
        return sorted(filter(None, names))

    def _endpoints(self, family: str) -> Iterator[_Endpoint]:
        for one in self._slices.values():
            port = self._number(one)
            if one.get("addressType") != family or port is None:
                continue
            for entry in one.get("endpoints") or ():
                for address in (entry.get("addresses") or ())[:1]:  # all of them mean the same endpoint
                    yield _endpoint(entry, _join(address, port))

    def _number(self, one: Slice) -> int | None:
        """The slice's number for the wanted port; None when it has no such port."""
        if not self._port or self._port.isdigit():
            return int(self._port or 0)
        for port in one.get("ports") or ():
            if port.get("name") == self._port and port.get("port"):
                return int(port["port"])
        return None


def _name(one: Slice) -> str:
    return str(one["metadata"]["name"])


def _join(address: str, port: int) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port}" if port else host


def _endpoint(entry: Mapping[str, Any], target: str) -> _Endpoint:
    conditions = entry.get("conditions") or {}
    pod = entry.get("targetRef") or {}
    peer = Peer(
        target=target,
        zone=entry.get("zone") or "",
        name=pod.get("name") or "",
        ready=conditions.get("ready") is not False,  # the API says that unknown means ready
        terminating=bool(conditions.get("terminating")),
    )
    return _Endpoint(peer, pod.get("uid") or "")


def _merge(entries: list[_Endpoint]) -> Peer:
    """One peer of the entries for its address.

    A pod never returns from terminating, so one entry that says so is right about that pod. Another pod with
    the same address is a new one that got the address of the old.
    """
    leaving = {entry.owner for entry in entries if entry.peer.terminating}
    staying = [entry for entry in entries if entry.owner not in leaving]
    kept = [entry.peer for entry in staying or entries]
    return Peer(
        target=kept[0].target,
        zone=next((peer.zone for peer in kept if peer.zone), ""),
        name=next((peer.name for peer in kept if peer.name), ""),
        ready=any(peer.ready for peer in kept) and bool(staying),
        terminating=not staying,
    )
