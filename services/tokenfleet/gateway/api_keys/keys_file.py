"""The file with the keys: one JSON object a line, added by appending and removed by deleting.

    {"id": "ci", "sha256": "9f86d0…", "tenant": "acme", "priority": "batch", "expires": "2027-01-31"}

`priority` (the highest class that the key's requests get) and `expires` may be left out; empty lines and
lines that begin with # are skipped. A problem is reported with its line and never with its value: somebody
may have written the key itself where its digest belongs.

Everything here is of the standard library and the contracts, because the bare install's command line makes
keys too.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokenfleet.v1 import common_pb2 as pb

KEY_PREFIX = "tfk_"  # by which people and scanners of repositories know one when they see it
KEY_BYTES = 32
PRIORITIES = {
    pb.Priority.Name(value).removeprefix("PRIORITY_").lower(): value
    for value in pb.Priority.values()
    if value != pb.PRIORITY_UNSPECIFIED
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FIELDS = frozenset({"id", "sha256", "tenant", "priority", "expires", "admin"})


class KeysFileError(Exception):
    """The file cannot be used; each problem names the file, its line and the remedy."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is known of a key, which is not the key."""

    id: str  # for logs and for whoever edits the file
    sha256: str  # of the key, lower-case hexadecimal
    tenant: str
    ceiling: pb.Priority.ValueType = pb.PRIORITY_INTERACTIVE
    expires: datetime | None = None
    admin: bool = False  # may administer the fleet's models

    def line(self) -> str:
        """The key's line in the file."""
        fields: dict[str, str | bool] = {"id": self.id, "sha256": self.sha256, "tenant": self.tenant}
        if self.ceiling != pb.PRIORITY_INTERACTIVE:
            fields["priority"] = next(name for name, value in PRIORITIES.items() if value == self.ceiling)
        if self.expires is not None:
            fields["expires"] = self.expires.isoformat()
        if self.admin:
            fields["admin"] = True
        return json.dumps(fields)


def new_key() -> str:
    """A fresh key: 256 bits in 47 characters, which are fit for headers and WebSocket subprotocols."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def read_keys(path: Path) -> dict[str, ApiKey]:
    """All keys by their digest. Raises KeysFileError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise KeysFileError([f"{path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise KeysFileError([f"{path}: is no UTF-8 text"]) from error
    keys: dict[str, ApiKey] = {}
    problems: list[str] = []
    ids: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = parse_line(line)
            if key.id in ids:
                raise ValueError(f"id: an earlier line has {key.id!r} too")
            if key.sha256 in keys:
                raise ValueError(f"sha256: the line of {keys[key.sha256].id!r} has the same")
        except ValueError as error:
            problems.append(f"{path}, line {number}: {error}")
        else:
            ids.add(key.id)
            keys[key.sha256] = key
    if not problems and not keys:
        problems = [f"{path}: has no key: add the line that `tokenfleet keys new --tenant NAME` prints"]
    if problems:
        raise KeysFileError(problems)
    return keys


def parse_line(line: str) -> ApiKey:
    """Raises ValueError that names the field and the remedy."""
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"column {error.colno}: no valid JSON: {error.msg}") from error
    if not isinstance(fields, dict):
        raise ValueError('expected an object: {"id": …, "sha256": …, "tenant": …}')
    if unknown := set(fields) - _FIELDS:
        raise ValueError(f"{min(unknown)}: unknown field; there are {', '.join(sorted(_FIELDS))}")
    return ApiKey(
        id=_name(fields, "id"),
        sha256=_sha256(fields),
        tenant=_name(fields, "tenant"),
        ceiling=ceiling_of(fields.get("priority", "interactive")),
        expires=None if "expires" not in fields else expiry_of(fields["expires"]),
        admin=_flag(fields, "admin"),
    )


def name_of(value: object, field: str) -> str:
    if isinstance(value, str) and NAME.fullmatch(value):
        return value
    raise ValueError(f"{field}: expected 1 to 128 letters, digits or . _ : @ / - and no space")


def ceiling_of(value: object) -> pb.Priority.ValueType:
    if isinstance(value, str) and value in PRIORITIES:
        return PRIORITIES[value]
    raise ValueError(f"priority: expected one of {', '.join(PRIORITIES)}")


def expiry_of(value: object) -> datetime:
    """A day means its beginning, and no time zone means UTC."""
    try:
        parsed = datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError as error:
        raise ValueError("expires: expected a date or a time, such as 2027-01-31T00:00:00Z") from error
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)


def _name(fields: dict[str, Any], field: str) -> str:
    if field not in fields:
        raise ValueError(f"{field}: is missing")
    return name_of(fields[field], field)


def _flag(fields: dict[str, Any], field: str) -> bool:
    value = fields.get(field, False)
    if isinstance(value, bool):
        return value
    raise ValueError(f"{field}: expected true or false")


def _sha256(fields: dict[str, Any]) -> str:
    value = fields.get("sha256")
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value
    raise ValueError("sha256: expected the 64 lower-case hexadecimal digits of the key's SHA-256")
