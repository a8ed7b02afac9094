"""Digests of large files, computed once per content.

Hashing seventy gigabytes takes minutes, so a digest is remembered together with the size and the time of
change that the file had then; a file that differs in either is hashed (or fetched) again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tokenfleet.runtime.models.progress import Progress
from tokenfleet.v1 import common_pb2

_CHUNK_BYTES = 1 << 22


class Stamp:
    """A small file that remembers another file's digest."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def beside(cls, file: Path) -> Stamp:
        return cls(file.with_name(file.name + ".sha256"))

    def digest_of(self, file: Path) -> str | None:
        """The digest, or None when it is unknown or the file has changed since."""
        try:
            digest, *rest = self._path.read_text(encoding="ascii").split()
            return digest if rest == looks(file) else None
        except (FileNotFoundError, ValueError):
            return None

    def record(self, file: Path, digest: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".stamp-")
        with os.fdopen(handle, "w", encoding="ascii") as temporary:
            temporary.write(" ".join([digest, *looks(file)]) + "\n")
        os.replace(name, self._path)


def folder_digest(digests: Mapping[str, str]) -> str:
    """Of several files, by their names: what `sha256sum *.safetensors | sha256sum` says in their folder.

    Of a single file it is the file's own.
    """
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_digest(file: Path, progress: Progress) -> str:
    """sha256, hexadecimal."""
    digest = hashlib.sha256()
    total, done = file.stat().st_size, 0
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(common_pb2.LoadProgress.STAGE_VERIFYING, done, total)
    return digest.hexdigest()


def looks(file: Path) -> list[str]:
    """By what a change of the file is noticed."""
    status = file.stat()
    return [str(status.st_size), str(status.st_mtime_ns)]
