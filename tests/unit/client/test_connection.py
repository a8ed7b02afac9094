"""Names, balancing, retries, keys and certificates, before anything is connected."""

import json
from pathlib import Path
from typing import Any

import pytest

from tokenfleet.client import FleetClient, Tls
from tokenfleet.client.connection import connection, service_config, target_of

SETTINGS: dict[str, Any] = {"api_key": None, "tls": False, "attempts": 4, "keepalive_s": 10.0}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("127.0.0.1:8081", "dns:///127.0.0.1:8081"),
        ("gateway.fleet:8081", "dns:///gateway.fleet:8081"),
        ("[::1]:8081", "dns:///[::1]:8081"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[fd00::1]:1", "[fd00::2]:2"], "ipv6:[fd00::1]:1,[fd00::2]:2"),
        ("dns:///gateway:8081", "dns:///gateway:8081"),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("unix:/run/gateway.sock", "unix:/run/gateway.sock"),
    ],
)
def test_targets_as_grpc_names_them(targets: Any, expected: str) -> None:
    assert target_of(targets) == expected


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([], "empty"),
        ("localhost", "host:port"),
        (":8081", "host:port"),
        ("localhost:http", "host:port"),
        ("localhost:70000", "host:port"),
        ("https://fleet.example", "host:port"),
        (["a:1", "b:2"], "one DNS name"),
        (["10.0.0.1:1", "[::1]:1"], "all IPv4 or all IPv6"),
        (["dns:///a:1", "10.0.0.1:1"], "one DNS name"),
    ],
)
def test_a_bad_target_says_what_to_write(targets: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        target_of(targets)


def test_retries_are_for_calls_that_can_be_repeated() -> None:
    (method,) = service_config(3)["methodConfig"]
    assert method["retryPolicy"]["maxAttempts"] == 3
    assert "DEADLINE_EXCEEDED" not in method["retryPolicy"]["retryableStatusCodes"]
    assert "retryPolicy" not in service_config(1)["methodConfig"][0]


@pytest.mark.parametrize("attempts", [0, 6])
def test_attempts_have_grpcs_limits(attempts: int) -> None:
    with pytest.raises(ValueError, match="attempts"):
        connection("a:1", **SETTINGS | {"attempts": attempts})


def test_options_carry_what_was_asked_for() -> None:
    way = connection(
        "a:1", **SETTINGS | {"keepalive_s": 2.5, "tls": Tls(server_name="fleet"), "api_key": "k"}
    )
    options = dict(way.options)
    assert options["grpc.keepalive_time_ms"] == 2500
    assert options["grpc.ssl_target_name_override"] == "fleet"
    assert json.loads(options["grpc.service_config"])["loadBalancingConfig"] == [{"round_robin": {}}]
    assert way.metadata == (("authorization", "Bearer k"),)
    assert way.credentials is not None


def test_in_the_clear_by_default() -> None:
    way = connection("a:1", **SETTINGS)
    assert way.credentials is None
    assert way.metadata == ()


@pytest.mark.parametrize("key", ["", " ", "a\n", "ä"])
def test_a_key_that_cannot_be_sent_is_refused_at_once(key: str) -> None:
    with pytest.raises(ValueError, match="api_key"):
        FleetClient("a:1", api_key=key)


def test_half_a_certificate_is_none() -> None:
    with pytest.raises(ValueError, match="go together"):
        FleetClient("a:1", tls=Tls(private_key=b"x"))


def test_certificates_may_be_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FleetClient("a:1", tls=Tls(root_certificates=tmp_path / "absent.pem"))
