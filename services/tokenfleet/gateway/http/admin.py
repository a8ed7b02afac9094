"""`/admin/models…`: what operators see of the fleet's models, and what they can do with them.

These change what everybody can use, so an ordinary key does not open them: a key needs `"admin": true` in the
keys file. Where the gateway asks for no keys at all, whoever sits at its machine is trusted and nobody else:
a caller from elsewhere, one that a proxy speaks for, and a web page of a foreign origin are refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from pydantic import ConfigDict, Field, JsonValue
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tokenfleet.gateway.api_keys.keyring import Caller
from tokenfleet.gateway.core import Gateway
from tokenfleet.gateway.http.chunks import DONE, event
from tokenfleet.gateway.http.errors import HttpError, error_body
from tokenfleet.gateway.http.guard import SCOPE_KEY
from tokenfleet.gateway.http.headers import ORIGIN, Fields, Origins
from tokenfleet.gateway.http.limits import Limits
from tokenfleet.gateway.http.schemas import ModelName, RequestBody, parse_in_turns
from tokenfleet.gateway.loader_client import LoaderClient
from tokenfleet.runtime.errors import FleetError, reason_name
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import model_loader_pb2 as api

PREFIX = "/admin/"
MAX_REPLICAS = 10_000
KNOWN_WITHIN_S = 2.0
log = get_logger(__name__)

_SPOKEN_FOR = (b"forwarded", b"x-forwarded-for", b"x-real-ip")


class Order(RequestBody):
    """Nobody's client sends these by habit: what is not known is refused without exception."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"additionalProperties": False})

    def check(self) -> None:
        """All of it is in the schema."""


class LoadRequest(Order):
    """A model that is to be loaded."""

    model: ModelName
    replicas: int = Field(1, ge=1, le=MAX_REPLICAS, description="workers that shall hold it")
    stream: bool = Field(False, description="whether to be told of the progress, as server-sent events")


class UnloadRequest(Order):
    """A model that is to be unloaded where nobody uses it."""

    model: ModelName
    worker_id: str = Field("", max_length=256, description="from there only; empty: everywhere")
    force: bool = Field(False, description="also where sequences run: they go on elsewhere")


class PinRequest(Order):
    """Whether a model is kept loaded whatever else needs memory."""

    model: ModelName
    pinned: bool = True


class AddRequest(Order):
    """An entry for the catalog; it stays until it is removed, over restarts where the loader has a store."""

    entry: (
        Annotated[dict[str, JsonValue], Field(max_length=64)] | Annotated[str, Field(max_length=65_536)]
    ) = Field(description="one entry as the catalog file has it: an object, or its YAML as text")
    replace: bool = Field(False, description="whether it may replace one that was added before")


class RemoveRequest(Order):
    """A model that was added and is to leave the catalog."""

    model: ModelName


def check_admin(caller: Caller, scope: dict[str, Any], fields: Fields, origins: Origins) -> None:
    """Raises FleetError (PERMISSION_DENIED) unless the caller may administer the fleet."""
    if caller.digest:
        if not caller.admin:
            raise _denied('this API key is no admin key: its line in the keys file lacks "admin": true')
        return
    host = (scope.get("client") or ("",))[0]
    if not _is_loopback(host) or any(name in fields for name in _SPOKEN_FOR):
        raise _denied(
            "without API keys, models are administered from the gateway's own machine only: call it there, "
            "or start it with --api-keys-file and an admin key"
        )
    named = fields.get(b"host", b"localhost").decode("latin-1")
    origin = fields.get(ORIGIN)
    if not _is_loopback(_host_of(named)) or (origin is not None and not origins.allow(origin)):
        raise _denied("without API keys, no page of another origin may administer models")


class AdminEndpoints:
    """What the model-loader can do, as JSON."""

    def __init__(self, gateway: Gateway, loader: LoaderClient) -> None:
        self._gateway = gateway
        self._loader = loader

    def routes(self) -> list[Route]:
        return [
            Route("/admin/models", self._list_or_add, methods=["GET", "POST"]),
            Route("/admin/models/load", self._load, methods=["POST"]),
            Route("/admin/models/unload", self._unload, methods=["POST"]),
            Route("/admin/models/pin", self._pin, methods=["POST"]),
            Route("/admin/models/remove", self._remove, methods=["POST"]),
        ]

    async def _list_or_add(self, request: Request) -> Response:
        return await (self._add(request) if request.method == "POST" else self._list())

    async def _list(self) -> Response:
        told = await self._loader.residency()
        return _json(
            {"models": [_model(each) for each in told.models], "workers": list(map(_worker, told.workers))}
        )

    async def _add(self, request: Request) -> Response:
        body = await parse_in_turns(AddRequest, await request.body(), _limits(request))
        entry = body.entry if isinstance(body.entry, str) else json.dumps(body.entry)
        spec = await self._loader.add(entry, replace=body.replace)
        await self._known(spec)
        return _json({"model": spec.name, "source": spec.source})

    async def _known(self, spec: pb.ModelSpec) -> None:
        """Whoever adds a model may ask for it next; the news is on its way to this gateway too."""
        catalog, changed = self._gateway.catalog, asyncio.Event()
        catalog.on_change.append(changed.set)
        try:
            async with asyncio.timeout(KNOWN_WITHIN_S):
                while catalog.models.get(spec.name) != spec:
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            log.warning("an added model is not in this gateway's catalog yet", model=spec.name)
        finally:
            catalog.on_change.remove(changed.set)

    async def _load(self, request: Request) -> Response:
        body = await parse_in_turns(LoadRequest, await request.body(), _limits(request))
        self._gateway.catalog.get(body.model)
        progress = self._loader.load(body.model, body.replicas)
        if body.stream:
            return StreamingResponse(_events(progress), media_type="text/event-stream")
        last: dict[str, Any] = {}
        async for each in progress:
            last = progress_json(each.progress)
        return _json(last)

    async def _unload(self, request: Request) -> Response:
        body = await parse_in_turns(UnloadRequest, await request.body(), _limits(request))
        self._gateway.catalog.get(body.model)
        try:
            ended = await self._loader.unload(body.model, body.worker_id, force=body.force)
        except FleetError as error:
            if error.reason == pb.REASON_NOT_RESIDENT:
                raise HttpError(404, "not_resident", error.message, field="model") from error
            raise
        return _json({"model": body.model, "workers": [_unloaded(each) for each in ended]})

    async def _pin(self, request: Request) -> Response:
        body = await parse_in_turns(PinRequest, await request.body(), _limits(request))
        self._gateway.catalog.get(body.model)
        await self._loader.pin(body.model, pinned=body.pinned)
        return _json({"model": body.model, "pinned": body.pinned})

    async def _remove(self, request: Request) -> Response:
        body = await parse_in_turns(RemoveRequest, await request.body(), _limits(request))
        self._gateway.catalog.get(body.model)
        await self._loader.remove(body.model)
        return _json({"model": body.model, "removed": True})


async def _events(progress: AsyncIterator[api.EnsureLoadedResponse]) -> AsyncIterator[bytes]:
    """As the streams of answers: each step an event, then `[DONE]`, or an error without it."""
    try:
        async for each in progress:
            yield event(progress_json(each.progress))
        yield DONE
    except FleetError as error:
        yield event(error_body(error))


def progress_json(progress: pb.LoadProgress) -> dict[str, Any]:
    return {
        "model": progress.model,
        "stage": _lower(pb.LoadProgress.Stage.Name(progress.stage), "STAGE_"),
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
        "eta_s": progress.eta_ms / 1000 if progress.eta_ms else None,
        "worker_id": progress.worker_id,
    }


def _model(held: api.ModelResidency) -> dict[str, Any]:
    spec = held.spec
    return {
        "name": spec.name,
        "source": spec.source,
        "context_length": spec.context_length,
        "policy": _lower(pb.ModelSpec.Policy.Name(spec.policy), "POLICY_"),
        "engines": [config.engine for config in spec.engines],
        "fallback": spec.fallback,
        "added": held.added,
        "pinned": held.pinned,
        "places": list(map(_place, held.places)),
        "loading": progress_json(held.loading) if held.HasField("loading") else None,
        "quarantine": _failure(held.quarantine) if held.HasField("quarantine") else None,
        "last_used_unix_s": held.last_used_unix_ms / 1000 if held.last_used_unix_ms else None,
        "loads": held.loads,
        "failures": held.failures,
        "last_load_s": held.last_load_ms / 1000 if held.last_load_ms else None,
        "wants_memory_bytes": held.wants_memory_bytes,
    }


def _place(place: api.ModelResidency.Place) -> dict[str, Any]:
    return {
        "worker_id": place.worker_id,
        "worker": place.worker_name,
        "zone": place.zone,
        "state": place.state,
        "memory_bytes": place.memory_bytes,
        "running": place.running,
    }


def _worker(worker: api.WorkerMemory) -> dict[str, Any]:
    return {
        "worker_id": worker.worker_id,
        "worker": worker.worker_name,
        "zone": worker.zone,
        "engines": list(worker.engines),
        "budget_bytes": worker.budget_bytes,
        "taken_bytes": worker.taken_bytes,
    }


def _unloaded(ended: api.UnloadResponse) -> dict[str, Any]:
    failure = _failure(ended.failure) if ended.HasField("failure") else None
    return {
        "worker_id": ended.worker_id,
        "done": ended.done,
        "freed_bytes": ended.freed_bytes,
        "failure": failure,
    }


def _failure(failure: pb.Failure) -> dict[str, Any]:
    return {
        "reason": reason_name(failure.reason),
        "message": failure.message,
        "retry_after_s": failure.retry_after_ms / 1000,
    }


def _lower(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


def _limits(request: Request) -> Limits:
    limits: Limits = request.scope[SCOPE_KEY].rules.limits
    return limits


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def _denied(message: str) -> FleetError:
    return FleetError(pb.REASON_PERMISSION_DENIED, message)


def _host_of(named: str) -> str:
    """A Host header's host, without its port."""
    if named.startswith("["):
        return named[1:].partition("]")[0]
    return named.partition(":")[0]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
