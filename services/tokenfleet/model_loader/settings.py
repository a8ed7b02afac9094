"""What the model-loader can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from tokenfleet.core.residency import Limits
from tokenfleet.runtime.discovery import PeerTargets
from tokenfleet.runtime.settings import ServiceSettings

STORE_SCHEMES = ("redis://", "rediss://", "unix://")


class ModelLoaderSettings(ServiceSettings):
    """Durations in seconds."""

    model_config = SettingsConfigDict(env_prefix="TOKENFLEET_MODEL_LOADER_")

    listen: str = Field("127.0.0.1:8085", description="host:port of the gRPC server; port 0: a free one")
    catalog: Path | None = Field(
        None, description="the catalog, YAML; none: the one that comes with tokenfleet"
    )
    catalog_poll_s: float = Field(5.0, gt=0, description="how often to look whether the catalog file changed")
    workers: PeerTargets = Field(
        default_factory=list,
        description="the workers: host:port, kubernetes://SERVICE:PORT or redis://HOST:PORT/0#NAME",
    )
    store: str = Field(
        "",
        description="Redis protocol: redis://host:port/0 or unix:///path; empty: keep no history",
    )
    store_timeout_s: float = Field(1.0, gt=0, description="longest wait for an answer of the store")
    no_worker_timeout_s: float = Field(
        30.0, ge=0, description="how long a worker that went away is expected back, and waited for"
    )
    eviction: Literal["demand", "lru"] = Field(
        "demand",
        description="which idle model makes room: demand, the cheapest to lose; lru, the longest unused",
    )
    min_residency_s: float = Field(
        10.0,
        gt=0,
        description="how long a model stays at least before it makes room for another; "
        "never for less than its load took",
    )
    surplus_idle_s: float = Field(
        300.0, gt=0, description="how long a further copy of a model may be idle before it is unloaded"
    )
    idle_unload_s: float = Field(
        0.0,
        ge=0,
        description="how long an unpinned model may be idle before it is unloaded; 0: until memory is needed",
    )

    @field_validator("store")
    @classmethod
    def _known_scheme(cls, store: str) -> str:
        if store and not store.startswith(STORE_SCHEMES):
            raise ValueError("write redis://host:port/0 or unix:///path/to/socket")
        return store

    def limits(self) -> Limits:
        return Limits(self.no_worker_timeout_s, self.min_residency_s, self.surplus_idle_s, self.idle_unload_s)
