"""Holds what the gateway answers against its own document.

The contract tests' HTTP client calls this for every response, so that an answer which is not as described
fails whichever test happens to get it.
"""

import json
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import httpx
import jsonschema_rs

from tokenfleet.gateway.http.openapi import OPERATIONS, document

ERROR = {"$ref": "#/components/schemas/Error"}
DONE = "[DONE]"


@cache
def described() -> dict[str, Any]:
    return document(OPERATIONS)


def check(shape: dict[str, Any], value: Any) -> None:
    """Fails when the value is not of this shape; references are into the document."""
    validator = _validator(json.dumps(shape))
    problems = [f"{problem.message} at {problem.instance_path}" for problem in validator.iter_errors(value)]
    assert not problems, f"not as described: {problems[:3]} in {str(value)[:500]}"


@cache
def _validator(shape: str) -> Any:
    whole = json.loads(shape) | {"components": described()["components"]}
    return jsonschema_rs.Draft202012Validator(whole)


async def check_response(response: httpx.Response) -> None:
    """An event hook of httpx; a stream is looked at when it ends."""
    path, method = response.request.url.path, response.request.method
    if method == "OPTIONS" and response.status_code in (204, 403):  # a browser asks before it sends
        return
    assert response.headers["x-request-id"]
    operation = _operation("GET" if method == "HEAD" else method, path)
    if operation is None:
        assert 400 <= response.status_code < 500
        check(ERROR, json.loads(await response.aread()))
        return
    known = operation["responses"].get(f"{response.status_code}")
    assert known is not None, f"{method} {path}: {response.status_code} is not documented"
    if "$ref" in known:
        known = described()["components"]["responses"][known["$ref"].rpartition("/")[2]]
    await _check_content(response, known["content"])


async def _check_content(response: httpx.Response, content: dict[str, Any]) -> None:
    media = response.headers["content-type"].partition(";")[0]
    assert media in content, f"{media} is not documented"
    if media == "text/event-stream":
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        response.stream = _CheckedEvents(stream, content[media]["x-event"])
        return
    body = await response.aread()
    if response.request.method != "HEAD":
        check(content[media]["schema"], json.loads(body) if media.endswith("json") else body.decode())


def _operation(method: str, path: str) -> dict[str, Any] | None:
    for template, operations in described()["paths"].items():
        fixed, name, _ = template.partition("{")
        fits = path.startswith(fixed) and len(path) > len(fixed) if name else path == fixed
        if fits and method.lower() in operations:
            found: dict[str, Any] = operations[method.lower()]
            return found
    return None


class _CheckedEvents(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, shape: dict[str, Any]) -> None:
        self._stream = stream
        self._shape = shape

    async def __aiter__(self) -> AsyncIterator[bytes]:
        seen = b""
        async for part in self._stream:
            seen += part
            yield part
        check_events(seen.decode(), self._shape)

    async def aclose(self) -> None:
        await self._stream.aclose()


def check_events(text: str, shape: dict[str, Any]) -> None:
    """A whole stream: comments, events of this shape, and an end that is `[DONE]` or an error."""
    assert text.endswith("\n\n")
    events = [event for event in text.split("\n\n")[:-1] if not event.startswith(":")]
    payloads = [event.removeprefix("data: ") for event in events]
    assert all(len(payload) < len(event) for payload, event in zip(payloads, events, strict=True))
    values = [json.loads(payload) for payload in payloads if payload != DONE]
    for value in values:
        check(shape, value)
    assert payloads[-1] == DONE or "error" in values[-1]


def check_socket_message(message: Any) -> None:
    check(described()["paths"]["/v1/stream"]["get"]["x-websocket"]["gateway"], message)
