"""`/v1/stream`: many requests at once on one WebSocket, each told apart by its `request_id`.

A client sends JSON messages: a request (the fields of a chat completion, or `prompt` for a completion, and
optionally `request_id`, `timeout` in seconds, and `"fallback": "never"`), or `{"type": "cancel",
"request_id": …}`.

With API keys, the client shows one when it connects: in the Authorization header, or, since pages cannot set
headers, by offering the subprotocols `tokenfleet` and `tokenfleet-key.KEY`. Never in the URL, which proxies
and servers write to their logs.

It gets `loading`, `fallback`, `delta`, `finish` and `error` messages. A request ends with the `finish` that
has the usage, or with an `error`; an error whose `request_id` is null is about a message that started none.
Closing the socket cancels everything on it.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from pydantic_core import from_json

from tokenfleet.gateway.api_keys.keyring import Caller
from tokenfleet.gateway.core import Gateway
from tokenfleet.gateway.http.answers import Request
from tokenfleet.gateway.http.errors import (
    HttpError,
    error_body,
    error_code,
    error_headers,
    invalid,
    status_of,
)
from tokenfleet.gateway.http.guard import SCOPE_KEY
from tokenfleet.gateway.http.headers import AUTHORIZATION, MAX_REQUEST_ID_CHARS, ORIGIN, Fields, Origins
from tokenfleet.gateway.http.json_shape import check_shape
from tokenfleet.gateway.http.limits import Limits
from tokenfleet.gateway.http.response import Send
from tokenfleet.gateway.http.schemas import ChatCompletionRequest, CompletionRequest, validate
from tokenfleet.gateway.http.websocket_connection import WebSocketConnection, error_message, message_frame
from tokenfleet.gateway.http.websocket_request import SocketRequest
from tokenfleet.gateway.urgency import Urgency, objective_s, priority_named
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2 as pb

PATH = "/v1/stream"
SUBPROTOCOL = "tokenfleet"
KEY_SUBPROTOCOL = "tokenfleet-key."
# UNAUTHORIZED is what IANA's registry of close codes has for it.
UNSUPPORTED_DATA, RESTART, UNAUTHORIZED = 1003, 1012, 3000

Receive = Callable[[], Awaitable[dict[str, Any]]]


class WebSocketEndpoint:
    """The ASGI application for WebSockets."""

    def __init__(self, gateway: Gateway, origins: Origins) -> None:
        self._gateway = gateway
        self._origins = origins

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await receive()
        fields: Fields = dict(scope["headers"])
        offered: list[str] = scope["subprotocols"]
        accept = {"type": "websocket.accept"}
        if SUBPROTOCOL in offered:  # browsers hang up when none of those that they offer is taken
            accept["subprotocol"] = SUBPROTOCOL
        try:
            self._check(scope["path"], fields)
            caller = self._admit(fields, offered)
        except FleetError as error:
            connection: WebSocketConnection = scope[SCOPE_KEY]
            connection.rules.refused(error_code(error))
            if error.reason != pb.REASON_UNAUTHENTICATED or not (offered or ORIGIN in fields):
                await _reject(error, send)
                return
            # a browser shows its page nothing of a refused handshake, so that it is told afterwards
            await send(accept)
            connection.write(message_frame(error_message(error)))
            connection.hang_up(UNAUTHORIZED, error_code(error))
            return
        await send(accept)
        await Session(self._gateway, scope[SCOPE_KEY], receive, caller).run()

    def _admit(self, fields: Fields, offered: list[str]) -> Caller:
        """Raises FleetError (UNAUTHENTICATED)."""
        keys = self._gateway.keys
        for subprotocol in offered:
            if subprotocol.startswith(KEY_SUBPROTOCOL) and AUTHORIZATION not in fields:
                return keys.admit_key(subprotocol.removeprefix(KEY_SUBPROTOCOL).encode())
        return keys.admit(fields.get(AUTHORIZATION))

    def _check(self, path: str, fields: Fields) -> None:
        """Raises FleetError when nobody, or nobody from that page, may connect."""
        if path != PATH:
            raise HttpError(404, "not_found", f"no WebSocket is served here, but at {PATH}")
        origin, host = fields.get(b"origin"), fields.get(b"host", b"")
        if origin is None or origin.partition(b"://")[2] == host or self._origins.allow(origin):
            return
        message = f"pages of {origin[:256].decode('latin-1')!r} may not connect: see --allowed-origins"
        raise HttpError(403, "origin_not_allowed", message)


class Session:
    """What goes on on one socket."""

    def __init__(
        self, gateway: Gateway, connection: WebSocketConnection, receive: Receive, caller: Caller
    ) -> None:
        self._gateway = gateway
        self._caller = caller
        self._connection = connection
        self._receive = receive
        self._running: dict[str, SocketRequest] = {}
        self._stopping = False

    async def run(self) -> None:
        """Until the socket is closed, by whomever."""
        connection = self._connection
        connection.watcher = self
        try:
            while (message := await self._receive())["type"] == "websocket.receive":
                self._take(message)
                # a client that sends but does not read is not listened to either
                await connection.writable.wait()
            await self._stop_all(FleetError(pb.REASON_CANCELLED, "the client closed the socket"))
        except asyncio.CancelledError:
            await self._stop_all(_draining())
            connection.hang_up(RESTART, "the gateway is stopping")
            raise
        finally:
            connection.watcher = None

    def writable(self) -> None:
        for request in tuple(self._running.values()):
            request.flush()

    def stop_soon(self) -> None:
        self._stopping = True
        self._close_when_done()

    def _take(self, message: dict[str, Any]) -> None:
        text = message.get("text")
        if text is None:
            error = invalid("", "binary messages are not taken: send JSON as text")
            self._connection.write(message_frame(error_message(error)))
            self._connection.hang_up(UNSUPPORTED_DATA, "binary message")
            return
        try:
            self._obey(_parse(text.encode(), self._connection.rules.limits))
        except FleetError as error:
            self._connection.write(message_frame(error_message(error)))

    def _obey(self, message: dict[str, Any]) -> None:
        kind = message.pop("type", "request")
        request_id = _request_id(message.pop("request_id", None))
        if kind == "request":
            self._start(message, request_id or f"ws-{random.getrandbits(128):032x}")
        elif kind != "cancel":
            raise invalid("type", 'type: "request" (or nothing) and "cancel" are taken')
        elif request_id is None:
            raise invalid("request_id", "request_id: which request is to be cancelled?")
        elif request_id in self._running:  # it may just have ended
            self._running[request_id].stop(FleetError(pb.REASON_CANCELLED, "cancelled by the client"))

    def _start(self, message: dict[str, Any], request_id: str) -> None:
        if request_id in self._running:
            raise invalid("request_id", f"request_id: {request_id!r} is still running on this socket")
        try:
            if self._stopping:
                raise _draining()
            self._check_room()
            fallback = _fallback_allowed(message.pop("fallback", None))
            timeout_s = _timeout_s(message.pop("timeout", None), self._gateway.settings.request_timeout_s)
            urgency = Urgency(
                priority_named(message.pop("priority", None), "priority"),
                objective_s(message.pop("ttft_objective", None), "ttft_objective"),
                objective_s(message.pop("itl_objective", None), "itl_objective"),
            )
            request = _request(message)
            caller = self._gateway.keys.admit_again(self._caller)
        except FleetError as error:
            self._connection.write(message_frame(error_message(error, request_id)))
            return
        self._running[request_id] = SocketRequest(
            self._gateway,
            self._connection,
            request,
            request_id,
            timeout_s,
            self._ended,
            caller=caller,
            fallback=fallback,
            urgency=urgency,
        )

    def _check_room(self) -> None:
        most = self._gateway.settings.max_socket_requests
        if len(self._running) >= most:
            message = (
                f"{most} requests are running on this socket: wait for one to end, or open another socket"
            )
            raise FleetError(pb.REASON_QUEUE_FULL, message, retry_after_s=1.0)

    def _ended(self, request: SocketRequest) -> None:
        del self._running[request.request_id]
        if self._stopping:
            self._close_when_done()

    def _close_when_done(self) -> None:
        if not self._running:
            self._connection.hang_up(RESTART, "the gateway is stopping")

    async def _stop_all(self, cause: FleetError) -> None:
        requests = tuple(self._running.values())
        for request in requests:
            request.stop(cause)
        await asyncio.gather(*(request.task for request in requests), return_exceptions=True)


def _parse(text: bytes, limits: Limits) -> dict[str, Any]:
    check_shape(text, limits)
    try:
        message = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise invalid("", f"the message is no valid JSON: {error}") from error
    if not isinstance(message, dict):
        raise invalid("", "the message is no JSON object")
    return message


def _request(message: dict[str, Any]) -> Request:
    if "prompt" in message:
        return validate(CompletionRequest, message)
    return validate(ChatCompletionRequest, message)


def _request_id(given: object) -> str | None:
    if given is None:
        return None
    if isinstance(given, str) and 0 < len(given) <= MAX_REQUEST_ID_CHARS and given.isprintable():
        return given
    raise invalid("request_id", f"request_id: 1 to {MAX_REQUEST_ID_CHARS} printable characters")


def _timeout_s(given: object, maximum: float) -> float:
    if given is None:
        return maximum
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise invalid("timeout", "timeout: a number of seconds above 0")
    return min(float(given), maximum)


def _fallback_allowed(given: object) -> bool:
    if given in (None, "allow", "never"):
        return given != "never"
    raise invalid("fallback", 'fallback: "allow" (or nothing) and "never" are taken')


def _draining() -> FleetError:
    message = "the gateway is stopping: send the request again, to another socket"
    return FleetError(pb.REASON_DRAINING, message, retry_after_s=1.0)


async def _reject(error: FleetError, send: Send) -> None:
    body = orjson.dumps(error_body(error))
    headers = [(b"content-type", b"application/json"), *error_headers(error)]
    await send({"type": "websocket.http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
