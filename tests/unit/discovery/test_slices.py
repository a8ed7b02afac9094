"""EndpointSlices as the API gives them, folded into peers."""

from typing import Any

import pytest

from tokenfleet.runtime.discovery.peers import Peer, ServiceRef
from tokenfleet.runtime.discovery.slices import SliceTable

GRPC = ({"name": "metrics", "port": 9090}, {"name": "grpc", "port": 8084})


def entry(address: str, pod: str = "", **fields: Any) -> dict[str, Any]:
    pod = pod or f"pod-{address}"
    return {"addresses": [address], "targetRef": {"name": pod, "uid": f"uid-{pod}"}, **fields}


def endpoint_slice(
    name: str, *entries: dict[str, Any], ports: Any = GRPC, family: str = "IPv4"
) -> dict[str, Any]:
    return {"metadata": {"name": name}, "addressType": family, "endpoints": list(entries), "ports": ports}


def peers(*slices: dict[str, Any], port: str = "grpc") -> dict[str, Peer]:
    table = SliceTable(port)
    table.replace(slices)
    return table.peers()


LEAVING = {"ready": False, "serving": True, "terminating": True}


def test_the_port_is_found_by_its_name_in_each_slice() -> None:
    other = ({"name": "grpc", "port": 7000},)
    found = peers(endpoint_slice("a", entry("10.0.0.1")), endpoint_slice("b", entry("10.0.0.2"), ports=other))
    assert set(found) == {"10.0.0.1:8084", "10.0.0.2:7000"}


def test_a_number_is_the_port_itself() -> None:
    assert set(peers(endpoint_slice("a", entry("10.0.0.1"), ports=None), port="7070")) == {"10.0.0.1:7070"}


def test_a_port_that_is_not_there_gives_no_peers_but_the_names_that_are() -> None:
    table = SliceTable("web")
    table.replace([endpoint_slice("a", entry("10.0.0.1"))])
    assert table.peers() == {}
    assert table.port_names() == ["grpc", "metrics"]


def test_zone_pod_and_conditions_are_taken_over() -> None:
    conditions = {"ready": False, "serving": False, "terminating": False}
    (peer,) = peers(endpoint_slice("a", entry("10.0.0.1", "w-0", zone="z1", conditions=conditions))).values()
    assert peer == Peer("10.0.0.1:8084", zone="z1", name="w-0", ready=False, terminating=False)


@pytest.mark.parametrize("conditions", [None, {}, {"ready": None, "serving": None, "terminating": None}])
def test_what_the_api_leaves_open_means_ready_and_staying(conditions: Any) -> None:
    (peer,) = peers(endpoint_slice("a", entry("10.0.0.1", conditions=conditions, zone=None))).values()
    assert (peer.ready, peer.terminating, peer.zone) == (True, False, "")


def test_an_empty_slice_is_no_error() -> None:
    nothing = {"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": None, "ports": None}
    assert peers(nothing) == {}


def test_only_one_family_counts() -> None:
    four = endpoint_slice("four", entry("10.0.0.1", "w-0"))
    six = endpoint_slice("six", entry("fd00::1", "w-0"), family="IPv6")
    assert set(peers(six, four)) == {"10.0.0.1:8084"}
    assert set(peers(six, endpoint_slice("four"))) == {"[fd00::1]:8084"}


def test_an_endpoint_in_two_slices_is_one_peer() -> None:
    told = entry("10.0.0.1", "w-0", zone="z1", conditions={"ready": True})
    old = entry("10.0.0.1", "w-0", conditions={"ready": False})
    assert list(peers(endpoint_slice("a", old), endpoint_slice("b", told)).values()) == [
        Peer("10.0.0.1:8084", zone="z1", name="w-0")
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_a_pod_that_one_slice_says_is_leaving_is_leaving(order: int) -> None:
    slices = [
        endpoint_slice("a", entry("10.0.0.1", "w-0", conditions={"ready": True})),
        endpoint_slice("b", entry("10.0.0.1", "w-0", conditions=LEAVING)),
    ]
    (peer,) = peers(*slices[::order]).values()
    assert (peer.ready, peer.terminating) == (False, True)


@pytest.mark.parametrize("order", [1, -1])
def test_the_new_pod_at_an_address_is_not_taken_for_the_old_one(order: int) -> None:
    slices = [
        endpoint_slice("a", entry("10.0.0.1", "old", conditions=LEAVING)),
        endpoint_slice("b", entry("10.0.0.1", "new", conditions={"ready": True})),
    ]
    (peer,) = peers(*slices[::order]).values()
    assert (peer.name, peer.ready, peer.terminating) == ("new", True, False)


def test_events_change_one_slice_and_leave_the_others() -> None:
    table = SliceTable("grpc")
    table.replace([endpoint_slice("a", entry("10.0.0.1")), endpoint_slice("b", entry("10.0.0.2"))])
    table.apply("MODIFIED", endpoint_slice("a", entry("10.0.0.1"), entry("10.0.0.3")))
    assert set(table.peers()) == {"10.0.0.1:8084", "10.0.0.2:8084", "10.0.0.3:8084"}
    table.apply("ADDED", endpoint_slice("c", entry("10.0.0.4")))
    table.apply("DELETED", endpoint_slice("b"))
    assert set(table.peers()) == {"10.0.0.1:8084", "10.0.0.3:8084", "10.0.0.4:8084"}


def test_a_new_list_forgets_what_is_not_in_it() -> None:
    table = SliceTable("grpc")
    table.replace([endpoint_slice("a", entry("10.0.0.1"))])
    table.replace([endpoint_slice("b", entry("10.0.0.2"))])
    assert set(table.peers()) == {"10.0.0.2:8084"}


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("kubernetes://workers:grpc", ServiceRef("workers", "", "grpc")),
        ("kubernetes://workers.fleet:8084", ServiceRef("workers", "fleet", "8084")),
        ("kubernetes://gateway", ServiceRef("gateway")),
    ],
)
def test_references_are_read_and_written_alike(text: str, reference: ServiceRef) -> None:
    assert ServiceRef.parse(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    ["kubernetes://", "kubernetes:///workers:grpc", "kubernetes://Workers:grpc", "kubernetes://a.b.c:1"],
)
def test_a_reference_that_names_no_service_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"kubernetes://SERVICE:PORT"):
        ServiceRef.parse(text)
