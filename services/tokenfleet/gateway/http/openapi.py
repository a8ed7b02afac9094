"""`/openapi.json`: the HTTP interface as a document, made from what really checks and serves it.

Request bodies are described by the very schemas that validate them, answers by the closed types of
`openapi_answers`, and every route that the application serves has to be described here: the document cannot
be made otherwise. It is made when somebody first asks for it, because a process that starts has better things
to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from tokenfleet import __version__
from tokenfleet.gateway.http import openapi_answers as answers
from tokenfleet.gateway.http.admin import AddRequest, LoadRequest, PinRequest, RemoveRequest, UnloadRequest
from tokenfleet.gateway.http.headers import MAX_REQUEST_ID_CHARS
from tokenfleet.gateway.http.openapi_prose import ADMIN, API, GENERATION, REFUSALS, SOCKET, STREAM, TOKENS
from tokenfleet.gateway.http.schemas import ChatCompletionRequest, CompletionRequest
from tokenfleet.gateway.http.tokenize import DetokenizeRequest, TokenizeRequest
from tokenfleet.gateway.urgency import PRIORITIES

Json = dict[str, Any]
Route = tuple[str, str]  # the method and the path's template

JSON, EVENTS, PLAIN = "application/json", "text/event-stream", "text/plain"
REFERENCE = "#/components/schemas/{model}"

# What the connection itself may say to any request, before anything looks at what it asks for.
ANY = (400, 408, 413, 414, 415, 431, 503)
WORK = (*ANY, 401, 403, 404, 429, 500, 504)
MANAGE = (*ANY, 401, 403, 404, 409, 500)


@dataclass(slots=True, frozen=True)
class Operation:
    """One route: its body and its answer as types, the statuses with which it may refuse."""

    summary: str
    answer: Any = None
    body: Any = None
    events: Any = None  # where it streams: the type of an event's payload
    refusals: tuple[int, ...] = ANY
    description: str = ""
    content_type: str = JSON
    status: int = 200
    parameters: tuple[Json, ...] = ()
    other: Mapping[int, Any] = field(default_factory=dict)  # answers that are no errors, by status
    open: bool = False  # needs no key where the others do


REQUEST_ID: Json = {
    "name": "X-Request-Id",
    "in": "header",
    "description": f"Comes back with the response and names the request in logs and traces: up to "
    f"{MAX_REQUEST_ID_CHARS} printable ASCII characters, in place of anything else the gateway makes one.",
    "schema": {"type": "string"},
}
TIMEOUT: Json = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds after which the request is given up with 504; can only lower the gateway's own.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
FALLBACK: Json = {
    "name": "X-Tokenfleet-Fallback",
    "in": "header",
    "description": "`never`: no other model shall answer where this one cannot be had.",
    "schema": {"enum": ["allow", "never"], "default": "allow"},
}
OBJECTIVE: Json = {"type": "number", "exclusiveMinimum": 0}
URGENCY: tuple[Json, ...] = (
    {
        "name": "X-Request-Priority",
        "in": "header",
        "description": "Which requests wait for which in a busy fleet; a key may have a highest class.",
        "schema": {"enum": list(PRIORITIES), "default": "standard"},
    },
    {
        "name": "X-TTFT-Objective",
        "in": "header",
        "description": "Seconds in which the first token is wanted, where that is sooner than of its class: "
        "the request waits for whichever worker gets to it first, not behind others on one of them.",
        "schema": OBJECTIVE,
    },
    {
        "name": "X-ITL-Objective",
        "in": "header",
        "description": "Seconds between two tokens that are wanted, where that is less than the class says: "
        "workers that are too busy for it are left alone, if one could do it.",
        "schema": OBJECTIVE,
    },
)
MODEL_NAME: Json = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "A model's `id` as `/v1/models` lists it.",
    "schema": {"type": "string"},
}

OPERATIONS: dict[Route, Operation] = {
    ("POST", "/v1/chat/completions"): Operation(
        "Answer a conversation",
        answers.ChatCompletion,
        ChatCompletionRequest,
        answers.ChatCompletionChunk,
        WORK,
        GENERATION,
        parameters=(FALLBACK, *URGENCY),
    ),
    ("POST", "/v1/completions"): Operation(
        "Continue a text",
        answers.Completion,
        CompletionRequest,
        answers.CompletionChunk,
        WORK,
        GENERATION,
        parameters=(FALLBACK, *URGENCY),
    ),
    ("GET", "/v1/models"): Operation(
        "List the models of the catalog", answers.ModelList, refusals=(*ANY, 401)
    ),
    ("GET", "/v1/models/{name}"): Operation(
        "Describe a model", answers.Model, refusals=(*ANY, 401, 404), parameters=(MODEL_NAME,)
    ),
    ("POST", "/tokenize"): Operation(
        "Count and show tokens", answers.Tokens, TokenizeRequest, None, WORK, TOKENS
    ),
    ("POST", "/detokenize"): Operation(
        "Turn token ids back into text", answers.Text, DetokenizeRequest, None, WORK
    ),
    ("GET", "/admin/models"): Operation(
        "Show where models are loaded", answers.ManagedModels, refusals=MANAGE, description=ADMIN
    ),
    ("POST", "/admin/models"): Operation(
        "Add a model to the catalog", answers.Added, AddRequest, refusals=MANAGE, description=ADMIN
    ),
    ("POST", "/admin/models/load"): Operation(
        "Load a model", answers.LoadProgress, LoadRequest, answers.LoadProgress, MANAGE, ADMIN
    ),
    ("POST", "/admin/models/unload"): Operation(
        "Unload a model", answers.UnloadResult, UnloadRequest, refusals=MANAGE, description=ADMIN
    ),
    ("POST", "/admin/models/pin"): Operation(
        "Pin or unpin a model", answers.Pinned, PinRequest, refusals=MANAGE, description=ADMIN
    ),
    ("POST", "/admin/models/remove"): Operation(
        "Remove a model that was added", answers.Removed, RemoveRequest, refusals=MANAGE, description=ADMIN
    ),
    ("GET", "/v1/stream"): Operation(
        "Open a WebSocket for many requests at once",
        status=101,
        refusals=(*ANY, 401, 403, 404, 426),
        description=SOCKET,
    ),
    ("GET", "/health/live"): Operation("Whether the process serves", answers.Liveness, open=True),
    ("GET", "/health/ready"): Operation(
        "Whether requests can be served now", answers.Readiness, other={503: answers.Readiness}, open=True
    ),
    ("GET", "/metrics"): Operation(
        "Metrics for Prometheus", str, content_type=PLAIN, refusals=(*ANY, 401, 404)
    ),
    ("GET", "/openapi.json"): Operation("This document", dict[str, Any], open=True),
}


def document(routes: Iterable[Route]) -> Json:
    """The OpenAPI 3.1 document of these routes. Raises LookupError when one is not described."""
    served = set(routes)
    if served != OPERATIONS.keys():
        raise LookupError(f"served or described, but not both: {sorted(served ^ OPERATIONS.keys())}")
    shapes = _Shapes()
    paths: dict[str, Json] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(operation, shapes)
    paths["/v1/stream"]["get"]["x-websocket"] = _socket(shapes)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tokenfleet", "version": __version__, "description": API},
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": shapes.components,
            "responses": {f"{status}": _refusal(status, text, shapes) for status, text in REFUSALS.items()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


class _Shapes:
    """Types as JSON schemas, each component once. Types with a name of their own become components."""

    def __init__(self) -> None:
        kinds = [kind for operation in OPERATIONS.values() for kind in _kinds(operation)]
        kinds += [answers.Error, answers.SocketCancel, answers.SocketAnswer]
        known, definitions = TypeAdapter.json_schemas(
            [(position, "validation", TypeAdapter(kind)) for position, kind in enumerate(kinds)],
            ref_template=REFERENCE,
        )
        self.components: Json = definitions["$defs"]
        self._known = [(kind, known[position, "validation"]) for position, kind in enumerate(kinds)]

    def of(self, kind: Any) -> Json:
        return next(shape for known, shape in self._known if known is kind)


def _kinds(operation: Operation) -> list[Any]:
    kinds = [operation.answer, operation.body, operation.events, *operation.other.values()]
    return [kind for kind in kinds if kind is not None]


def _operation(operation: Operation, shapes: _Shapes) -> Json:
    described: Json = {
        "summary": operation.summary,
        "parameters": [
            REQUEST_ID,
            *operation.parameters,
            *([TIMEOUT] if operation.body and operation.refusals is WORK else []),
        ],
        "responses": _responses(operation, shapes),
    }
    if operation.open:
        described["security"] = []
    if operation.description:
        described["description"] = operation.description
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": shapes.of(operation.body)}},
        }
    return described


def _responses(operation: Operation, shapes: _Shapes) -> Json:
    responses = {f"{status}": {"$ref": f"#/components/responses/{status}"} for status in operation.refusals}
    content: Json = {}
    if operation.answer is not None:
        content[operation.content_type] = {"schema": shapes.of(operation.answer)}
    if operation.events is not None:
        payload = {"anyOf": [shapes.of(operation.events), shapes.of(answers.Error)]}
        content[EVENTS] = {"schema": {"description": STREAM}, "x-event": payload}
    responses[f"{operation.status}"] = _response(operation.summary, content)
    for status, kind in operation.other.items():
        shape = {"anyOf": [shapes.of(kind), shapes.of(answers.Error)]}
        responses[f"{status}"] = _response(f"{operation.summary}: no", {JSON: {"schema": shape}})
    return dict(sorted(responses.items()))


def _response(description: str, content: Json) -> Json:
    headers: Json = {"X-Request-Id": {"description": "The request's id.", "schema": {"type": "string"}}}
    response: Json = {"description": description}
    if content:
        response |= {"headers": headers, "content": content}
    return response


def _refusal(status: int, text: str, shapes: _Shapes) -> Json:
    response = _response(text, {JSON: {"schema": shapes.of(answers.Error)}})
    if status in (429, 503, 504):
        retry = {"description": "Seconds to wait before trying again.", "schema": {"type": "integer"}}
        response["headers"] = response["headers"] | {"Retry-After": retry}
    return response


def _socket(shapes: _Shapes) -> Json:
    """The messages of both directions, each a JSON object in a text message."""
    requests = [_socket_request(shapes, kind) for kind in (ChatCompletionRequest, CompletionRequest)]
    return {
        "client": {"anyOf": [*requests, shapes.of(answers.SocketCancel)]},
        "gateway": shapes.of(answers.SocketAnswer),
    }


def _socket_request(shapes: _Shapes, kind: type) -> Json:
    body: Json = shapes.components[kind.__name__]
    envelope = {
        "type": {"const": "request", "default": "request"},
        "request_id": {"type": "string", "minLength": 1, "maxLength": MAX_REQUEST_ID_CHARS},
        "timeout": {"type": "number", "exclusiveMinimum": 0, "description": "seconds"},
        "fallback": {"enum": ["allow", "never"], "default": "allow"},
        "priority": {"enum": list(PRIORITIES), "default": "standard"},
        "ttft_objective": OBJECTIVE | {"description": "seconds, as X-TTFT-Objective"},
        "itl_objective": OBJECTIVE | {"description": "seconds, as X-ITL-Objective"},
    }
    return body | {"title": f"Socket{kind.__name__}", "properties": envelope | body["properties"]}
