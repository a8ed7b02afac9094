"""Typed settings: environment, flags and YAML in one model per service, and nothing unknown accepted.

Precedence, highest first: flags, environment, YAML file (`--config` or `<PREFIX>CONFIG`), defaults. A
misspelt key is a start-up error that names it. pydantic-settings ignores unknown *environment* variables, so
those are checked here: a `TOKENFLEET_ROUTER_QUEU_LIMIT` that silently does nothing is the worst kind of
setting.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import yaml
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

Settings = TypeVar("Settings", bound="ServiceSettings")


def _split(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[]").replace('"', "").split(",") if part.strip()]
    return value


# `host:port` addresses, separated by commas in the environment and on the command line.
Targets = Annotated[list[str], NoDecode, BeforeValidator(_split)]


class ServiceSettings(BaseSettings):
    """What every service can be told. Durations are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        extra="forbid", cli_kebab_case=True, cli_implicit_flags=True, validate_default=True
    )

    config: Path | None = Field(None, description="YAML file with these settings")
    listen: str = Field("127.0.0.1:0", description="host:port of the gRPC server; port 0: a free one")
    advertise_host: str = Field("", description="address peers reach this process by; empty: as dialed")
    metrics_listen: str = Field("127.0.0.1:0", description="host:port of the Prometheus endpoint")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="lowest level")
    log_format: str = Field("auto", pattern="^(auto|json|console)$", description="auto: console on a tty")
    grace_s: float = Field(25.0, ge=0, description="time to finish running work after SIGTERM")
    frames: bool = Field(True, description="carry the hot streams as plain frames instead of over gRPC")
    tls_cert: Path | None = Field(
        None, description="certificate for peers, PEM; with key and CA, services talk over mutual TLS only"
    )
    tls_key: Path | None = Field(None, description="its key, PEM, unencrypted")
    tls_ca: Path | None = Field(None, description="certificates of the authorities of peers, PEM")
    tls_domain: str = Field(
        "tokenfleet.internal", description="a peer's certificate has to be for ROLE.DOMAIN, as worker.DOMAIN"
    )
    reload_poll_s: float = Field(
        5.0, gt=0, description="how often to look whether files with certificates and keys changed"
    )
    frames_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="port of the plain frames, for firewalls that must name it; 0: a free one. Processes "
        "that share the gRPC port take consecutive ones",
    )
    reflection: bool = Field(False, description="serve gRPC reflection (local use)")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings


def load_settings(cls: type[Settings], arguments: Sequence[str] | None = None) -> Settings:
    """Settings from flags, environment and YAML; on a bad one, prints what to mend and exits with 2."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _refuse_unknown_environment(cls)
        values: dict[str, Any] = {"_cli_parse_args": argv, "_cli_prog_name": _program()}
        return cls(**values, **_yaml_values(cls, argv))
    except ValidationError as error:
        _fail([_explain(cls, item["loc"], item["msg"], item.get("input")) for item in error.errors()])
    except (SettingsError, _BadSettings) as error:
        _fail([str(error)])


class _BadSettings(Exception):
    """A settings source that cannot be used; the message says why."""


def _program() -> str:
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {module.parent}" if module and module.parent else "tokenfleet"


def _prefix(cls: type[ServiceSettings]) -> str:
    return str(cls.model_config.get("env_prefix", ""))


def _refuse_unknown_environment(cls: type[ServiceSettings]) -> None:
    prefix = _prefix(cls)
    known = {f"{prefix}{name}".upper() for name in cls.model_fields}
    for variable in os.environ:
        if variable.upper().startswith(prefix.upper()) and variable.upper() not in known:
            near = difflib.get_close_matches(variable.upper(), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; unset it or see --help for what exists"
            raise _BadSettings(f"environment variable {variable} is not a setting of this service{hint}")


def _config_path(cls: type[ServiceSettings], argv: Sequence[str]) -> str | None:
    for position, argument in enumerate(argv):
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
        if argument == "--config" and position + 1 < len(argv):
            return argv[position + 1]
    return os.environ.get(f"{_prefix(cls)}CONFIG")


def _yaml_values(cls: type[ServiceSettings], argv: Sequence[str]) -> dict[str, Any]:
    """The file's keys that neither a flag nor the environment overrides."""
    path = _config_path(cls, argv)
    if path is None:
        return {}
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise _BadSettings(f"--config {path}: {error}") from error
    if not isinstance(loaded, dict):
        raise _BadSettings(f"--config {path}: expected a mapping of settings, got {type(loaded).__name__}")
    environment = {name.upper() for name in os.environ}
    flags = {argument.split("=")[0].lstrip("-").removeprefix("no-") for argument in argv}
    return {
        key: value
        for key, value in loaded.items()
        if f"{_prefix(cls)}{key}".upper() not in environment and str(key).replace("_", "-") not in flags
    }


def _explain(cls: type[ServiceSettings], loc: tuple[int | str, ...], message: str, value: object) -> str:
    name = ".".join(str(part) for part in loc)
    if message == "Extra inputs are not permitted":
        near = difflib.get_close_matches(name, cls.model_fields, n=1)
        return f"{name}: unknown setting" + (f"; did you mean {near[0]}?" if near else "")
    flag = name.replace("_", "-")
    return f"{name}: {message} (got {value!r}; set --{flag} or {_prefix(cls)}{name.upper()})"


def _fail(problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        print(f"{_program()}: {problem}", file=sys.stderr)
    raise SystemExit(2)


def split_address(address: str) -> tuple[str, int]:
    """`host:port` as a pair; IPv6 hosts in brackets. Raises ValueError with the remedy."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{address!r} is no address: write host:port, for example 127.0.0.1:9000")
    return host.strip("[]"), int(port)
