"""What a fetched folder held when it came: each file with its digest, its size and its time of change.

The manifest is written before the folder gets its final name, so a folder that has one was once whole; one
that has changed since is found out by sizes and times, without hashing it again.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenfleet.runtime.models.digests import looks

_FILE = "manifest.json"
CONTENT = "content"


def write_manifest(home: Path, digests: dict[str, str]) -> None:
    """`digests` are sha256 by path below the home's content."""
    files = {path: [digest, *looks(home / CONTENT / path)] for path, digest in digests.items()}
    (home / _FILE).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


def whole(home: Path) -> dict[str, str] | None:
    """The digests by path, or None when the folder is not there or not as it came."""
    try:
        files = json.loads((home / _FILE).read_text(encoding="utf-8"))["files"]
        if all(rest == looks(home / CONTENT / path) for path, (_, *rest) in files.items()):
            return {path: digest for path, (digest, *_) in files.items()}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        pass
    return None
