import os
import socket
import sys

import pytest

from tokenfleet.cli.local_fleet import LocalFleetError, PortTakenError
from tokenfleet.cli.local_fleet.ports import LOOPBACK, PortReservation, require_free


def listen(port: int, *, reuse: bool = True) -> socket.socket:
    server = socket.socket()
    try:
        if reuse:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((LOOPBACK, port))
        server.listen()
    except OSError:
        server.close()
        raise
    return server


def test_reserved_ports_are_distinct_and_servers_can_use_them() -> None:
    reservation = PortReservation()
    ports = reservation.take(20)
    assert len(set(ports)) == 20
    for port in ports:
        listen(port).close()
    reservation.release()


@pytest.mark.skipif(sys.platform != "linux", reason="ports stay reserved on Linux only")
def test_a_reserved_port_is_given_to_nobody_else() -> None:
    reservation = PortReservation()
    (port,) = reservation.take(1)
    with pytest.raises(OSError, match="in use"):
        listen(port, reuse=False)
    reservation.release()
    listen(port, reuse=False).close()


def test_a_free_port_is_free() -> None:
    reservation = PortReservation()
    (port,) = reservation.take(1)
    reservation.release()
    require_free(LOOPBACK, port)


def test_a_taken_port_is_named_with_its_holder() -> None:
    with listen(0) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            PortTakenError, match=rf"port {port} on 127.0.0.1 is taken by pid {os.getpid()} \("
        ):
            require_free(LOOPBACK, port)


def test_a_listener_on_all_addresses_takes_the_port_too() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server, pytest.raises(PortTakenError):
        require_free(LOOPBACK, server.getsockname()[1])


def test_an_address_of_somebody_else_is_no_place_to_listen() -> None:
    with pytest.raises(LocalFleetError, match=r"cannot listen on 192\.0\.2\.1:8080"):
        require_free("192.0.2.1", 8080)
