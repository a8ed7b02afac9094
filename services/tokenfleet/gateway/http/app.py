"""The HTTP application: the two hot paths are taken directly, everything else goes through starlette."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tokenfleet.gateway.core import Gateway
from tokenfleet.gateway.http.admin import PREFIX as ADMIN
from tokenfleet.gateway.http.admin import AdminEndpoints, check_admin
from tokenfleet.gateway.http.completions import CompletionEndpoint, Receive
from tokenfleet.gateway.http.errors import HttpError, error_body, error_code, error_headers, status_of
from tokenfleet.gateway.http.guard import SCOPE_KEY, Rules
from tokenfleet.gateway.http.headers import (
    AUTHORIZATION,
    CALLER_KEY,
    FIELDS_KEY,
    ORIGIN,
    Fields,
    Headers,
    Origins,
    request_id,
)
from tokenfleet.gateway.http.response import Send
from tokenfleet.gateway.http.tokenize import TokenizeEndpoints
from tokenfleet.gateway.http.websocket import PATH as SOCKET_PATH
from tokenfleet.gateway.http.websocket import WebSocketEndpoint
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2 as pb

Ready = Callable[[], dict[str, bool]]

log = get_logger(__name__)

NO_BODY = (b"content-length", b"0")
# What needs no API key: nothing in it is anybody's, and probes and readers of documentation have none.
OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/openapi.json"})


class HttpApp:
    """The ASGI application. `ready` tells, part by part, whether requests can be served."""

    def __init__(self, gateway: Gateway, ready: Ready, registry: CollectorRegistry) -> None:
        self._websocket = WebSocketEndpoint(gateway, Origins(gateway.settings.allowed_origins))
        self._hot = {
            "/v1/chat/completions": CompletionEndpoint(gateway, chat=True),
            "/v1/completions": CompletionEndpoint(gateway, chat=False),
        }
        self._keys = gateway.keys
        self._other = _starlette(gateway, ready, registry, list(self._hot))

    @property
    def routes(self) -> set[tuple[str, str]]:
        """The method and the path's template of everything served over HTTP; HEAD comes with each GET."""
        return served_by(self._other)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        fields: Fields = scope[FIELDS_KEY]
        rules = scope[SCOPE_KEY].rules
        if scope["method"] == "OPTIONS" and ORIGIN in fields:
            await _answer_preflight(rules.origins.preflight(fields), send)
            return
        path = scope["path"]
        if path not in OPEN_PATHS:
            try:
                scope[CALLER_KEY] = self._keys.admit(fields.get(AUTHORIZATION))
                if path.startswith(ADMIN):
                    check_admin(scope[CALLER_KEY], scope, fields, rules.origins)
            except FleetError as error:
                await _turn_away(error, rules, fields, send)
                return
        if scope["method"] == "POST":
            endpoint = self._hot.get(path)
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        headers = rules.headers(fields, request_id(fields, "req"))
        await self._other(scope, receive, _adding(headers, send))  # type: ignore[arg-type]


def _adding(headers: Headers, send: Send) -> Send:
    """Adds headers to the response, whatever becomes of the request."""

    async def send_with_headers(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
        await send(message)

    return send_with_headers


async def _turn_away(error: FleetError, rules: Rules, fields: Fields, send: Send) -> None:
    """Answers whoever has no key that is good here; the request's body stays unread."""
    rules.refused(error_code(error))
    body = orjson.dumps(error_body(error))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *rules.headers(fields, request_id(fields, "refused")),
        *error_headers(error),
    ]
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _answer_preflight(headers: Headers, send: Send) -> None:
    status = 204 if headers else 403
    await send({"type": "http.response.start", "status": status, "headers": [*headers, NO_BODY]})
    await send({"type": "http.response.body"})


def _starlette(
    gateway: Gateway, ready: Ready, registry: CollectorRegistry, hot_paths: list[str]
) -> Starlette:
    async def models(_: Request) -> Response:
        specs = gateway.catalog.models.values()
        return JSONResponse({"object": "list", "data": [_describe(spec) for spec in specs]})

    async def model(request: Request) -> Response:
        return JSONResponse(_describe(gateway.catalog.get(request.path_params["name"])))

    async def live(_: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def readiness(_: Request) -> Response:
        parts = ready()
        well = all(parts.values())
        return JSONResponse({"status": "ready" if well else "not ready", **parts}, 200 if well else 503)

    async def metrics(_: Request) -> Response:
        if gateway.keys.required:  # what all tenants do is no tenant's business
            raise HttpError(404, "not_found", "with API keys, metrics are only at --metrics-listen")
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def taken_before(request: Request) -> Response:
        raise AssertionError(f"{request.url.path} is a hot path: its POST never gets here")

    async def only_websocket(_: Request) -> Response:
        raise HTTPException(426, f"{SOCKET_PATH} serves a WebSocket: upgrade", {"Upgrade": "websocket"})

    async def openapi(request: Request) -> Response:
        from tokenfleet.gateway.http.openapi import document  # takes a while, and few ever ask

        if not described:
            described.append(orjson.dumps(document(served_by(request.app))))
        return Response(described[0], media_type="application/json")

    described: list[bytes] = []
    routes = [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health/live", live),
        Route("/health/ready", readiness),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
        Route(SOCKET_PATH, only_websocket),
        *TokenizeEndpoints(gateway).routes(),
        *AdminEndpoints(gateway, gateway.loader).routes(),
        *(Route(path, taken_before, methods=["POST"]) for path in hot_paths),
    ]
    handlers = {
        FleetError: _fleet_error,
        HTTPException: _http_error,
        Exception: _internal_error,
        ClientDisconnect: _nobody_left,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # it would send clients to wherever their Host header says
    return app


def served_by(app: Starlette) -> set[tuple[str, str]]:
    return {
        (method, route.path_format)
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }


def _describe(spec: pb.ModelSpec) -> dict[str, Any]:
    return {
        "id": spec.name,
        "object": "model",
        "created": spec.created_unix_s,
        "owned_by": "tokenfleet",
        "max_model_len": spec.context_length,
    }


async def _nobody_left(_: Request, error: Exception) -> Response:
    """The client left before its request was complete: an answer for nobody."""
    return Response(status_code=499)


async def _internal_error(_: Request, error: Exception) -> Response:
    log.error("request failed", exc_info=error)
    return await _fleet_error(_, FleetError(pb.REASON_INTERNAL, "internal error; the log has the details"))


async def _fleet_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, FleetError)
    response = _json(error_body(error), status_of(error))
    for name, value in error_headers(error):
        response.headers[name.decode()] = value.decode()
    return response


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = error.headers or {}
    code, message = "upgrade_required", error.detail
    if error.status_code == 404:
        code, message = "not_found", f"nothing is served at {request.url.path[:256]}: see /openapi.json"
    elif error.status_code == 405:
        code, message = "method_not_allowed", f"{request.url.path[:256]} takes {headers['Allow']}"
    response = _json(error_body(HttpError(error.status_code, code, message)), error.status_code)
    response.headers.update(headers)
    return response


def _json(body: dict[str, Any], status: int) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
