"""Keys files for gateways under test."""

from pathlib import Path
from typing import Any

from tokenfleet.gateway.api_keys.keys_file import ApiKey, digest, new_key


def made_key(tenant: str = "acme", **fields: Any) -> tuple[str, str]:
    """A fresh key and its line."""
    key = new_key()
    known = {"id": f"{tenant}-{key[4:10]}", "tenant": tenant, "sha256": digest(key.encode())}
    return key, ApiKey(**(known | fields)).line()


def write_keys(path: Path, *lines: str) -> Path:
    """All at once, as whoever edits such a file should."""
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    fresh.replace(path)
    return path


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
