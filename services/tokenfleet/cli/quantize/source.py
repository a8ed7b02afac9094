"""The model to quantize: a gguf, a folder in Hugging Face's layout, or a name of the catalog."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenfleet.cli.errors import CliError
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import ModelCache, default_cache_dir
from tokenfleet.runtime.models.gguf_metadata import read_metadata
from tokenfleet.v1 import common_pb2


@dataclass(frozen=True, slots=True)
class Source:
    """A model's files here. `spec` is its catalog entry, or one that says as much as a path does."""

    spec: common_pb2.ModelSpec
    path: Path

    @property
    def is_gguf(self) -> bool:
        return self.path.is_file()

    @property
    def bytes(self) -> int:
        return size_of(self.path)

    @property
    def context_length(self) -> int:
        """As the entry says, or else the model; 0: neither does."""
        if self.spec.context_length:
            return self.spec.context_length
        if self.is_gguf:
            metadata = read_metadata(self.path)
            return int(metadata.get(f"{metadata.get('general.architecture')}.context_length", 0))
        config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        return int(config.get("max_position_embeddings", 0))

    def as_folder(self) -> Path:
        """In Hugging Face's layout, converted where it is a gguf. Raises CliError."""
        if not self.is_gguf:
            return self.path
        try:
            return ModelCache(default_cache_dir()).folder(self.spec)
        except FleetError as error:
            raise CliError(error.message) from error


def find_source(name: str, catalog: Path | None) -> Source:
    """Fetches what the catalog names. Raises CliError that says what there is."""
    path = Path(name).expanduser()
    if path.exists():
        return _checked(
            common_pb2.ModelSpec(name=path.stem, source=f"file://{path.resolve()}"), path.resolve()
        )
    spec = _entry(name, catalog)
    try:
        return _checked(spec, ModelCache(default_cache_dir()).weights(spec))
    except FleetError as error:
        raise CliError(error.message) from error


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _checked(spec: common_pb2.ModelSpec, path: Path) -> Source:
    if path.is_dir() and not (path / "config.json").is_file():
        raise CliError(f"{path} is no model's folder: it holds no config.json")
    if path.is_file() and path.suffix != ".gguf":
        raise CliError(f"{path} is neither a .gguf nor a folder in Hugging Face's layout")
    return Source(spec, path)


def _entry(name: str, catalog: Path | None) -> common_pb2.ModelSpec:
    from tokenfleet.model_loader.catalog import CatalogError, default_path, read_catalog

    try:
        specs = {spec.name: spec for spec in read_catalog(catalog or default_path()).specs()}
    except CatalogError as error:
        raise CliError(str(error)) from error
    if name not in specs:
        raise CliError(
            f"there is no file, folder or model {name!r}; the catalog has "
            f"{', '.join(sorted(specs)) or 'none'}"
        )
    return specs[name]
