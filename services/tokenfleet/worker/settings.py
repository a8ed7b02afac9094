"""What a worker can be told."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from tokenfleet.runtime.discovery import Registration, RegistryRef
from tokenfleet.runtime.lifecycle import StartupError
from tokenfleet.runtime.models import default_cache_dir
from tokenfleet.runtime.settings import ServiceSettings, Targets, split_address
from tokenfleet.worker.engines.registry import ENGINES


def _known_engines(names: list[str]) -> list[str]:
    if not names:
        raise ValueError(f"name at least one engine of {', '.join(sorted(ENGINES))}")
    for name in names:
        if name not in ENGINES:
            raise ValueError(f"unknown engine {name!r}; known: {', '.join(sorted(ENGINES))}")
    return names


def _of_known_engines(arguments: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for name in arguments:
        _known_engines([name])
    return arguments


def _known_registry(registry: str) -> str:
    if registry:
        RegistryRef.parse(registry)
    return registry


class WorkerSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TOKENFLEET_WORKER_", extra="forbid", cli_kebab_case=True)

    name: str = Field(default_factory=socket.gethostname, description="stable name across restarts")
    zone: str = Field("", description="where this worker runs, for routing by zone")
    registry: Annotated[str, AfterValidator(_known_registry)] = Field(
        "",
        description="where this worker keeps a lease by which peers find it, redis://HOST:PORT/0#NAME; "
        "empty: nowhere",
    )
    lease_s: float = Field(
        10.0, ge=0.3, description="how long after its death a worker still stands in the registry"
    )
    engines: Annotated[Targets, AfterValidator(_known_engines)] = Field(
        ["llamacpp", "sim"], description="engines that this worker can host, comma separated"
    )
    memory_bytes: int = Field(
        0,
        ge=0,
        description="for weights and KV; 0: the devices' memory where engines use it, else all it may use",
    )
    threads: int = Field(0, ge=0, description="CPU threads of an engine; 0: half of the CPUs it may use")
    cache_dir: Path = Field(default_factory=default_cache_dir, description="model files on this node")
    cache_bytes: int = Field(
        0, ge=0, description="what the model files may take; the least recently used go; 0: no bound"
    )
    coalesce_ms: float = Field(5.0, ge=0, le=100, description="how long a sparse step may wait for others")
    stuck_s: float = Field(5.0, gt=0, description="a gateway that takes nothing for so long is disconnected")
    queue_limit: int = Field(4096, ge=1, description="sequences held at once; more are refused")
    canary_timeout_s: float = Field(120.0, gt=0, description="time for a new engine's first token")

    engine_arguments: Annotated[dict[str, dict[str, Any]], AfterValidator(_of_known_engines)] = Field(
        default_factory=dict,
        description="what this worker's engines get over their catalog entry's arguments, such as "
        '{"llamacpp": {"n_gpu_layers": 0}}',
    )

    def registration(self, port: int) -> Registration | None:
        """This worker's lease, if it is to have one; `port` is the one on which it listens.

        Raises StartupError when peers could not reach it by what it would say.
        """
        if not self.registry:
            return None
        host = self.advertise_host or split_address(self.listen)[0]
        if host in ("", "0.0.0.0", "::"):
            raise StartupError(f"peers cannot reach {self.listen}: name this host with --advertise-host")
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        registry = RegistryRef.parse(self.registry)
        return Registration(registry, target, zone=self.zone, name=self.name, lease_s=self.lease_s)

    @property
    def engine_threads(self) -> int:
        return self.threads or max(1, available_cpus() // 2)


def available_cpus() -> int:
    """CPUs this process may run on; a container's quota is the engine's operator's to state."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
