"""What a catalog entry, or one worker, says of the server to attach to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tokenfleet.worker.engines.arguments import EngineArguments


def _target(address: str) -> str:
    if address.startswith("unix:"):
        return address
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError("must be HOST:PORT, [IPV6]:PORT or unix:/PATH")
    return address


class TlsArguments(BaseModel):
    """How the server is authenticated, and this worker to it. Files are read at each attach."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca_file: Path | None = None  # None: the authorities that this machine trusts
    cert_file: Path | None = None  # this worker's own, where the server asks for one
    key_file: Path | None = None
    server_name: str = ""  # in the server's certificate, where it is not the address

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together: give both or neither")
        return self


class RemoteArguments(EngineArguments):
    address: Annotated[str, AfterValidator(_target)]
    dialect: Literal["vllm", "trtllm"] = "vllm"
    model: str = ""  # the server has to name its model so; empty: whatever it serves
    tls: TlsArguments | None = None
    token_file: Path | None = None  # sent as a bearer token
    attach_timeout_s: float = Field(600, gt=0)  # until the server is there and ready
    call_timeout_s: float = Field(10, gt=0)  # of a question that it answers at once
    health_interval_s: float = Field(5, gt=0)
    stall_timeout_s: float = Field(60, gt=0)  # with work, and no token for so long: wedged
    # for a server that does not tell
    max_sequences: int = Field(0, ge=0)
    kv_tokens: int = Field(0, ge=0)
    # Where it publishes what its cache holds: empty it at the attach, or what it held before stays unknown.
    flush_cache: bool = True

    @model_validator(mode="after")
    def _no_token_in_the_clear(self) -> Self:
        if self.token_file is not None and self.tls is None:
            raise ValueError("token_file needs tls: the token would travel in the clear")
        return self
