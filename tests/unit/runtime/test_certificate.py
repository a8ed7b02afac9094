"""Certificates as they are read: what is refused with which words, and what stays in force."""

import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.certificates import Authority
from tokenfleet.runtime.tls import Certificate, PemFiles, TlsError

NAME = "worker.tokenfleet.internal"


@pytest.fixture(scope="module")
def ours() -> Authority:
    return Authority()


def files_of(folder: Path, name: str = "worker") -> PemFiles:
    return PemFiles(folder / f"{name}.pem", folder / f"{name}.key", folder / "ca.pem")


def written(folder: Path, authority: Authority) -> PemFiles:
    authority.write_peers(folder, ["worker"])
    return files_of(folder)


def certificate_of(files: PemFiles, name: str | None = NAME) -> Certificate:
    return Certificate(files, name=name, poll_s=60)


def complaint_about(files: PemFiles, name: str | None = NAME) -> str:
    with pytest.raises(TlsError) as caught:
        certificate_of(files, name)
    return str(caught.value)


def test_a_good_pair_is_taken_and_told_of(tmp_path: Path, ours: Authority) -> None:
    files = written(tmp_path, ours)
    with capture_logs() as logged:
        loaded = certificate_of(files).loaded
    assert loaded.names == (NAME,)
    assert 29 * 86_400 < loaded.not_after - time.time() < 31 * 86_400
    (record,) = logged
    assert (record["event"], record["names"], record["days_left"]) == ("certificate", [NAME], 29)


def test_one_that_no_peer_would_take_is_refused(tmp_path: Path, ours: Authority) -> None:
    files = written(tmp_path, ours)
    assert "not valid for 'router.x'" in complaint_about(files, "router.x")
    Authority().write_ca(tmp_path)
    assert f"--tls-cert: {files.cert}: no peer would take it (trusting {files.ca})" in complaint_about(files)
    ours.write_peers(tmp_path, ["worker"], expired=True)
    assert "certificate has expired" in complaint_about(files)


def test_an_expired_one_is_refused_at_the_edge_too(tmp_path: Path, ours: Authority) -> None:
    cert, key = ours.write(tmp_path, "edge", "fleet.test", expired=True)
    edge = PemFiles(cert, key, None, "edge-tls")
    assert "--edge-tls-cert" in complaint_about(edge, None)
    ours.write(tmp_path, "edge", "fleet.test")
    assert certificate_of(edge, None).loaded.names == ("fleet.test",)


def test_what_is_no_pair_is_refused_with_the_settings_name(tmp_path: Path, ours: Authority) -> None:
    files = written(tmp_path, ours)
    _, stranger = ours.write(tmp_path, "router", "router.x")
    mixed = PemFiles(files.cert, stranger, files.ca)
    assert complaint_about(mixed) == f"--tls-key: {stranger}: is not the key of {files.cert}"
    absent = PemFiles(files.cert, tmp_path / "absent", files.ca)
    assert complaint_about(absent) == f"--tls-key: {tmp_path / 'absent'}: No such file or directory"
    (tmp_path / "text").write_text("text")
    assert "as PEM" in complaint_about(PemFiles(tmp_path / "text", files.key, files.ca))
    assert "--tls-ca" in complaint_about(PemFiles(files.cert, files.key, tmp_path / "text"))


def test_a_renewed_pair_takes_effect_and_a_bad_one_does_not(tmp_path: Path, ours: Authority) -> None:
    certificate = certificate_of(written(tmp_path, ours))
    renewed: list[None] = []
    certificate.on_change.append(lambda: renewed.append(None))
    first = certificate.loaded
    ours.write_peers(tmp_path, ["worker"])
    certificate._watch.check()
    second = certificate.loaded
    assert second.cert != first.cert
    assert renewed == [None]
    with capture_logs() as logged:
        Authority().write(tmp_path, "worker", NAME)
        certificate._watch.check()
    assert certificate.loaded is second
    assert renewed == [None]
    assert logged[0]["log_level"] == "error"
    assert "no peer would take it" in logged[0]["problem"]
