"""The catalog file: checked entry by entry, so that every problem is told at once, each with where it is.

A catalog is read by people who write it by hand, and a key that silently does nothing costs them an hour:
unknown keys are refused, with the key that was probably meant.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, JsonValue, ValidationError, field_validator

from tokenfleet.core.residency import EngineNeed, Entry
from tokenfleet.v1 import common_pb2

EngineName = Literal["llamacpp", "vllm", "trtllm", "remote", "transformers", "sim"]
Source = Annotated[str, Field(pattern=r"^(pip|file|hf)://.+")]


class CatalogError(Exception):
    """The catalog cannot be used; `problems` are lines for people."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineConfig(_Model):
    """How one engine runs the model."""

    engine: EngineName
    arguments: dict[str, JsonValue] = {}
    weights_bytes: ByteSize = Field(ByteSize(0), ge=0)
    kv_bytes: ByteSize = Field(ByteSize(0), ge=0)


class ModelEntry(_Model):
    """One model. Field names are the file's keys."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=200)
    source: Source
    tokenizer_source: Source | Literal[""] = ""
    digest: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    context_length: int = Field(ge=1)
    block_size: int = Field(16, ge=1, le=4096)
    system_prompt: str = ""
    policy: Literal["warm", "lazy"] = "lazy"
    replicas: int = Field(0, ge=0)
    engines: tuple[EngineConfig, ...]
    fallback: str = ""
    created: datetime.date | None = None

    @field_validator("engines")
    @classmethod
    def _each_engine_once(cls, engines: tuple[EngineConfig, ...]) -> tuple[EngineConfig, ...]:
        if not engines:
            raise ValueError("name at least one engine that can run the model")
        names = [config.engine for config in engines]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{min(twice)} is there twice: an engine has one configuration")
        return engines

    def spec(self) -> common_pb2.ModelSpec:
        """The entry as it travels."""
        warm = self.policy == "warm"
        return common_pb2.ModelSpec(
            name=self.name,
            source=self.source,
            digest=self.digest,
            context_length=self.context_length,
            block_size=self.block_size,
            system_prompt=self.system_prompt,
            policy=common_pb2.ModelSpec.POLICY_WARM if warm else common_pb2.ModelSpec.POLICY_LAZY,
            engines=[_engine_config(config) for config in self.engines],
            fallback=self.fallback,
            replicas=self.replicas,
            created_unix_s=_unix_s(self.created) if self.created else 0,
            tokenizer_source=self.tokenizer_source,
        )

    def entry(self) -> Entry:
        """The entry as residency sees it."""
        needs = (EngineNeed(each.engine, each.weights_bytes + each.kv_bytes) for each in self.engines)
        return Entry(self.name, tuple(needs), warm=self.policy == "warm", replicas=self.replicas)


@dataclass(slots=True, frozen=True)
class Catalog:
    """A checked catalog; `digest` names its content."""

    entries: tuple[ModelEntry, ...]
    digest: str

    def specs(self) -> list[common_pb2.ModelSpec]:
        return [entry.spec() for entry in self.entries]


def default_path() -> Path:
    """The catalog that comes with tokenfleet, in a checkout or in a package. Raises CatalogError."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package.parents[1] / "config" / "catalog.yaml", package / "config" / "catalog.yaml"):
        if candidate.is_file():
            return candidate
    raise CatalogError(["there is no default catalog here: name one with --catalog FILE"])


def read_catalog(path: Path) -> Catalog:
    """The catalog in the file. Raises CatalogError with every problem."""
    try:
        text = path.read_text(encoding="utf-8")
        loaded = yaml.safe_load(text)
    except OSError as error:
        raise CatalogError([f"{path}: {error.strerror}; name another with --catalog FILE"]) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogError([f"{path}: {error}"]) from error
    return Catalog(_check(path, loaded), hashlib.sha256(text.encode()).hexdigest())


def read_entry(text: str) -> ModelEntry:
    """One entry alone, YAML or JSON. Raises CatalogError with every problem."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CatalogError([f"entry: {error}"]) from error
    if not isinstance(raw, dict):
        raise CatalogError(["entry: expected the keys of one model, such as name and source"])
    try:
        return ModelEntry.model_validate(raw)
    except ValidationError as error:
        raise CatalogError([f"{_label(raw, 1)}: {_explain(detail)}" for detail in error.errors()]) from error


def _check(path: Path, loaded: object) -> tuple[ModelEntry, ...]:
    if not isinstance(loaded, dict) or not isinstance(loaded.get("models"), list):
        raise CatalogError([f"{path}: expected a key `models` with a list of entries"])
    problems = [f"{path}: {_unknown(str(key), ['models'])}" for key in loaded if key != "models"]
    entries: list[ModelEntry] = []
    for number, raw in enumerate(loaded["models"], start=1):
        where = f"{path}: {_label(raw, number)}"
        try:
            entries.append(ModelEntry.model_validate(raw))
        except ValidationError as error:
            problems += [f"{where}: {_explain(detail)}" for detail in error.errors()]
    problems += [f"{path}: {problem}" for problem in across(entries)]
    if problems:
        raise CatalogError(problems)
    return tuple(entries)


def across(entries: Iterable[ModelEntry]) -> list[str]:
    """What only shows when all entries are seen."""
    problems: list[str] = []
    names: set[str] = set()
    fallbacks: dict[str, str] = {}
    for entry in entries:
        if entry.name in names:
            problems.append(f"model {entry.name!r}: name: another entry has it already")
        names.add(entry.name)
        fallbacks[entry.name] = entry.fallback
    for name, fallback in fallbacks.items():
        if fallback == name:
            problems.append(f"model {name!r}: fallback: a model cannot stand in for itself")
        elif fallback and fallback not in names:
            problems.append(f"model {name!r}: fallback: there is no model {fallback!r} in this catalog")
    return problems + [_circle(circle) for circle in _circles(fallbacks)]


def _circle(circle: Sequence[str]) -> str:
    way = " → ".join([*circle, circle[0]])
    return f"model {circle[0]!r}: fallback: {way} goes in a circle: let one of them have no fallback"


def _circles(fallbacks: Mapping[str, str]) -> list[list[str]]:
    """Each once, from the entry of it that comes first."""
    found: list[list[str]] = []
    for name in fallbacks:
        way = [name]
        while (following := fallbacks.get(way[-1], "")) and following not in way:
            way.append(following)
        if following == name and len(way) > 1 and not any(name in circle for circle in found):
            found.append(way)
    return found


def _label(raw: object, number: int) -> str:
    name = raw.get("name") if isinstance(raw, dict) else None
    return f"model {name!r}" if isinstance(name, str) else f"entry {number}"


def _explain(detail: Mapping[str, Any]) -> str:
    location = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        fields = EngineConfig.model_fields if "engines" in detail["loc"] else ModelEntry.model_fields
        return _unknown(str(detail["loc"][-1]), fields, prefix=location.rpartition(".")[0])
    if detail["type"] == "missing":
        return f"{location}: is missing"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{location}: {message} (got {detail['input']!r})" if location else message


def _unknown(key: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
    return f"{prefix}{'.' if prefix else ''}{key}: unknown key{hint}"


def _engine_config(config: EngineConfig) -> common_pb2.ModelSpec.EngineConfig:
    return common_pb2.ModelSpec.EngineConfig(
        engine=config.engine,
        arguments={name: json.dumps(value) for name, value in config.arguments.items()},
        weights_bytes=config.weights_bytes,
        kv_bytes=config.kv_bytes,
    )


def _unix_s(day: datetime.date) -> int:
    midnight = datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC)
    return int(midnight.timestamp())
