"""The keys file and the keyring: what is taken, what is refused with which words, and what stays in force."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.contract.keys import made_key, write_keys
from tokenfleet.gateway.api_keys.keyring import ANYBODY, Keyring
from tokenfleet.gateway.api_keys.keys_file import KeysFileError, digest, new_key, parse_line, read_keys
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2 as pb


def refused(keyring: Keyring, authorization: bytes | None) -> str:
    with pytest.raises(FleetError) as caught:
        keyring.admit(authorization)
    assert caught.value.reason == pb.REASON_UNAUTHENTICATED
    return caught.value.message


def sent(key: str, scheme: str = "Bearer") -> bytes:
    return f"{scheme} {key}".encode()


def problems_of(path: Path) -> list[str]:
    with pytest.raises(KeysFileError) as caught:
        read_keys(path)
    return caught.value.problems


def test_a_fresh_key_has_256_bits_and_fits_into_headers_and_subprotocols() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) == 47 and set(key) <= set(_TOKEN_CHARACTERS) for key in keys)


_TOKEN_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"


def test_a_line_says_all_that_is_known_of_a_key() -> None:
    expires = datetime(2030, 1, 31, tzinfo=UTC)
    _, line = made_key("acme", ceiling=pb.PRIORITY_BATCH, expires=expires)
    key = parse_line(line)
    assert (key.tenant, key.ceiling, key.expires) == ("acme", pb.PRIORITY_BATCH, expires)
    assert parse_line(key.line()) == key


def test_without_a_file_everybody_is_the_same_caller() -> None:
    keyring = Keyring()
    assert not keyring.required
    assert keyring.admit(None) is keyring.admit(b"Bearer whatever") is ANYBODY


def test_a_key_gives_the_tenant(tmp_path: Path) -> None:
    (one, line), (other, other_line) = made_key("acme"), made_key("emca")
    keyring = Keyring(write_keys(tmp_path / "keys", "# ours", "", line, other_line))
    assert keyring.admit(sent(one)).tenant == "acme"
    assert keyring.admit(sent(other, "bearer")).tenant == "emca"


def test_what_is_no_good_key_is_refused_and_told_why(tmp_path: Path) -> None:
    key, line = made_key()
    keyring = Keyring(write_keys(tmp_path / "keys", line))
    assert "no API key was sent" in refused(keyring, None)
    assert "Bearer KEY" in refused(keyring, b"Basic " + key.encode())
    for wrong in (new_key(), key[:-1], key + "x", "", digest(key.encode())):
        message = refused(keyring, sent(wrong))
        assert "not known" in message
        assert not wrong or wrong not in message


def test_an_expired_key_is_refused(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    old, old_line = made_key(expires=now - timedelta(seconds=1))
    young, young_line = made_key(expires=now + timedelta(hours=1))
    keyring = Keyring(write_keys(tmp_path / "keys", old_line, young_line))
    assert "expired" in refused(keyring, sent(old))
    assert keyring.admit(sent(young)).tenant == "acme"


@pytest.mark.parametrize(
    ("ceiling", "wanted", "given"),
    [
        (pb.PRIORITY_INTERACTIVE, pb.PRIORITY_INTERACTIVE, pb.PRIORITY_INTERACTIVE),
        (pb.PRIORITY_STANDARD, pb.PRIORITY_INTERACTIVE, pb.PRIORITY_STANDARD),
        (pb.PRIORITY_STANDARD, pb.PRIORITY_BATCH, pb.PRIORITY_BATCH),
        (pb.PRIORITY_BATCH, pb.PRIORITY_INTERACTIVE, pb.PRIORITY_BATCH),
    ],
)
def test_no_request_gets_above_its_keys_class(tmp_path: Path, ceiling: Any, wanted: Any, given: int) -> None:
    key, line = made_key(ceiling=ceiling)
    caller = Keyring(write_keys(tmp_path / "keys", line)).admit(sent(key))
    assert caller.priority(wanted) == given


GOOD = {"id": "a", "sha256": "0" * 64, "tenant": "acme"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"id": "a",', "column 12: no valid JSON"),
        ("[]", "expected an object"),
        (GOOD | {"sha256": "tfk_the-key-itself"}, "sha256: expected the 64"),
        (GOOD | {"sha256": "A" * 64}, "lower-case"),
        (GOOD | {"key": "tfk_the-key-itself"}, "key: unknown field; there are admin, expires, id"),
        ({"id": "a", "sha256": "0" * 64}, "tenant: is missing"),
        (GOOD | {"tenant": "two words"}, "tenant: expected 1 to 128 letters"),
        (GOOD | {"tenant": ""}, "tenant: expected"),
        (GOOD | {"id": 7}, "id: expected"),
        (GOOD | {"priority": "urgent"}, "priority: expected one of interactive, standard, batch"),
        (GOOD | {"expires": "soon"}, "expires: expected a date"),
        (GOOD | {"expires": 5}, "expires: expected a date"),
        (GOOD | {"admin": "yes"}, "admin: expected true or false"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_not_with_its_secret(
    tmp_path: Path, line: Any, complaint: str
) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    (problem,) = problems_of(write_keys(tmp_path / "keys", "# one", made_key()[1], text))
    assert problem.startswith(f"{tmp_path / 'keys'}, line 3: ")
    assert complaint in problem
    assert "tfk_" not in problem


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    _, line = made_key()
    again = json.dumps(json.loads(line) | {"id": "another"})
    found = problems_of(write_keys(tmp_path / "keys", line, line, "x", again))
    assert [problem.partition(": ")[0][-6:] for problem in found] == ["line 2", "line 3", "line 4"]
    assert "id: an earlier line has" in found[0]
    assert "sha256: the line of" in found[2]


def test_a_file_without_keys_or_no_file_is_no_keys_file(tmp_path: Path) -> None:
    assert "tokenfleet keys new" in problems_of(write_keys(tmp_path / "keys", "# none yet"))[0]
    assert "No such file" in problems_of(tmp_path / "absent")[0]
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "no UTF-8" in problems_of(tmp_path / "binary")[0]


def test_a_changed_file_takes_effect(tmp_path: Path) -> None:
    (old, old_line), (new, new_line) = made_key(), made_key()
    path = write_keys(tmp_path / "keys", old_line)
    keyring = Keyring(path)
    caller = keyring.admit(sent(old))
    write_keys(path, old_line, new_line)
    check(keyring)
    assert keyring.admit(sent(old)) == keyring.admit_again(caller) == caller
    write_keys(path, new_line)
    check(keyring)
    assert keyring.admit(sent(new)).tenant == "acme"
    assert "not known" in refused(keyring, sent(old))
    with pytest.raises(FleetError):
        keyring.admit_again(caller)


def test_a_secret_that_kubernetes_swaps_is_seen(tmp_path: Path) -> None:
    """A mounted secret is a link to a link to a folder, and the middle one is replaced."""
    (old, old_line), (new, new_line) = made_key(), made_key()
    for folder, line in (("..1", old_line), ("..2", new_line)):
        (tmp_path / folder).mkdir()
        write_keys(tmp_path / folder / "keys", line)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys").symlink_to("..data/keys")
    keyring = Keyring(tmp_path / "keys")
    (tmp_path / "..next").symlink_to("..2")
    (tmp_path / "..next").replace(tmp_path / "..data")
    check(keyring)
    assert keyring.admit(sent(new)).tenant == "acme"
    refused(keyring, sent(old))


@pytest.mark.parametrize("broken", ['{"id": "a"}\n', "", None])
def test_a_broken_file_changes_nothing_and_its_line_is_logged(tmp_path: Path, broken: str | None) -> None:
    key, line = made_key()
    path = write_keys(tmp_path / "keys", line)
    keyring = Keyring(path)
    with capture_logs() as logged:
        if broken is None:
            path.unlink()
        else:
            path.write_text(broken)
        check(keyring)
    assert keyring.admit(sent(key)).tenant == "acme"
    (record,) = logged
    assert record["log_level"] == "error"
    expected = {"": "has no key", None: "No such file"}.get(broken, "line 1: sha256: expected")
    assert expected in record["problem"]
    write_keys(path, line, made_key("emca")[1])
    check(keyring)
    assert len(keyring._entries) == 2


def check(keyring: Keyring) -> None:
    assert keyring._watch is not None
    keyring._watch.check()
