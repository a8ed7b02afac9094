"""What the tokenizer can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tokenfleet.runtime.models import default_cache_dir
from tokenfleet.runtime.settings import ServiceSettings


class TokenizerSettings(ServiceSettings):
    """Durations in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="TOKENFLEET_TOKENIZER_")

    listen: str = Field("127.0.0.1:8082", description="host:port of the gRPC server; port 0: a free one")
    loader: str = Field("127.0.0.1:8085", description="host:port of the model-loader, for the catalog")
    cache_dir: Path = Field(default_factory=default_cache_dir, description="where models are kept")
    cache_bytes: int = Field(
        0, ge=0, description="what models may take there; the least recently used go; 0: no bound"
    )
    processes: int = Field(1, ge=1, le=256, description="processes that share the port")
    backend: str = Field(
        "auto",
        pattern="^(auto|fastokens|tokenizers)$",
        description="auto: fastokens where it gives the same ids as tokenizers",
    )
    inline_bytes: int = Field(
        32 * 1024,
        ge=0,
        description="jobs that arrive together and are at most this large are encoded at once on the event "
        "loop (under a millisecond); larger ones go to the encoding thread, whose hand-over costs 65 µs",
    )
    queue_limit: int = Field(4096, ge=1, description="jobs waiting in this process before new ones are shed")
    prefix_cache_bytes: int = Field(
        64 * 1024 * 1024,
        ge=0,
        description="memory for each model's cache of prompts seen before, whose beginnings the turns of a "
        "conversation share; 0: none",
    )
