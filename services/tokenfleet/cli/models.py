"""`tokenfleet models`: what can be asked for, and where it is loaded.

The model-loader knows all of it, and so does the gateway for those who manage it; to everybody else it tells
what it publishes: names and context lengths.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import grpc

from tokenfleet.cli.console import plain_or_coloured
from tokenfleet.cli.discovery import local_fleet, process_address
from tokenfleet.cli.errors import CliError
from tokenfleet.cli.gateway_http import GatewayError, GatewayHttp
from tokenfleet.cli.status import ModelRow, residencies
from tokenfleet.cli.status_tables import model_table


def show_models(*, port: int | None, url: str, loader: str, api_key: str, as_json: bool) -> None:
    """Prints the models of one fleet. Raises CliError when it cannot be asked."""
    if sum(map(bool, (port, url, loader))) > 1:
        raise CliError("--port, --url and --loader exclude each other: each names a fleet")
    if url:
        rows = managed(url, api_key) or published(url, api_key)
    else:
        rows = asyncio.run(_resident(loader or _local_loader(port)))
    if as_json:
        print(json.dumps({"models": [_as_json(row) for row in rows]}, indent=2))
        return
    knows_places = any(row.policy for row in rows)
    plain_or_coloured().print(
        model_table(rows, knows_places=knows_places) if rows else "the catalog is empty"
    )


def managed(url: str, api_key: str) -> list[ModelRow] | None:
    """What a gateway tells those who manage it; None when we are none. Raises GatewayError."""
    try:
        told = GatewayHttp(url, api_key).order("GET", "/admin/models")
    except GatewayError as error:
        if error.code in ("permission_denied", "not_found", "404"):
            return None
        raise
    return [_managed_row(model) for model in told["models"]]


def published(url: str, api_key: str) -> list[ModelRow]:
    """What a gateway publishes. Raises GatewayError."""
    return [
        ModelRow(name=str(model.get("id")), context_length=int(model.get("max_model_len") or 0))
        for model in GatewayHttp(url, api_key).models()
    ]


def _managed_row(model: Mapping[str, Any]) -> ModelRow:
    loading, quarantine = model["loading"], model["quarantine"]
    return ModelRow(
        name=model["name"],
        policy=model["policy"],
        context_length=model["context_length"],
        places={place["worker"] or place["worker_id"]: place["state"] for place in model["places"]},
        memory_bytes=sum(place["memory_bytes"] for place in model["places"]),
        pinned=model["pinned"],
        wants_memory_bytes=model["wants_memory_bytes"],
        loading=loading["stage"] if loading else "",
        error=quarantine["message"] if quarantine else "",
    )


def _as_json(row: ModelRow) -> dict[str, Any]:
    return {**asdict(row), "resident": "ready" in row.places.values() if row.policy else None}


def _local_loader(port: int | None) -> str:
    return process_address(local_fleet(port, elsewhere="models --url http://host:8080"), "model-loader")


async def _resident(loader: str) -> list[ModelRow]:
    try:
        return await residencies(loader)
    except grpc.aio.AioRpcError as error:
        raise CliError(
            f"the model-loader at {loader} does not answer: {error.code().name} {error.details()}"
        ) from error
