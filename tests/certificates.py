"""Authorities and certificates of our own, made in memory and written where a test wants them."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

DOMAIN = "tokenfleet.internal"
ROLES = ("gateway", "tokenizer", "router", "model-loader", "worker")


class Authority:
    """Signs whatever it is asked to."""

    def __init__(self) -> None:
        self.ca = trustme.CA()
        self.pem = self.ca.cert_pem.bytes()

    def write(self, folder: Path, name: str, *identities: str, expired: bool = False) -> tuple[Path, Path]:
        """NAME.pem and NAME.key, each put in place at once."""
        now = datetime.now(UTC)
        begins = now - timedelta(days=30)
        ends = now - timedelta(days=1) if expired else now + timedelta(days=30)
        made = self.ca.issue_cert(*identities, not_before=begins, not_after=ends)
        cert, key = folder / f"{name}.pem", folder / f"{name}.key"
        _put(cert, b"".join(blob.bytes() for blob in made.cert_chain_pems))
        _put(key, made.private_key_pem.bytes())
        return cert, key

    def write_ca(self, folder: Path, *others: "Authority") -> Path:
        """ca.pem, which also trusts the others."""
        path = folder / "ca.pem"
        _put(path, b"".join(each.pem for each in (self, *others)))
        return path

    def write_peers(self, folder: Path, roles: Iterable[str] = ROLES, *, expired: bool = False) -> Path:
        """What a fleet's processes need for mutual TLS: ca.pem, and ROLE.pem and ROLE.key."""
        folder.mkdir(exist_ok=True)
        self.write_ca(folder)
        for role in roles:
            self.write(folder, role, f"{role}.{DOMAIN}", expired=expired)
        return folder


def _put(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(content)
    fresh.replace(path)
