"""`/openapi.json` is true: it has every route, its schemas are what is checked, and answers keep to it."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from tests.contract.fake_fleet import gateway_on_fakes
from tests.contract.openapi import check_events, check_response, check_socket_message, described
from tests.contract.test_gateway_http import CHAT, chat
from tokenfleet.gateway.http.app import served_by
from tokenfleet.gateway.http.openapi import OPERATIONS, document

EXAMPLES = 20
BUDGET_S = 100


async def test_the_document_has_every_route_and_is_what_the_gateway_serves() -> None:
    async with gateway_on_fakes() as fleet:
        served = (await fleet.http.get("/openapi.json")).json()
        assert served == json.loads(json.dumps(described()))
        assert served["openapi"].startswith("3.1")
        for schema in served["components"]["schemas"].values():
            jsonschema_rs.meta.validate(schema)


@pytest.mark.parametrize("more", ["/v1/embeddings", None])
def test_a_route_that_is_not_described_or_not_served_makes_no_document(more: str | None) -> None:
    def endpoint(_: Any) -> Response:
        return Response()

    extra = [Route(more, endpoint, methods=["POST"])] if more else []
    routes = [Route(path, endpoint, methods=[method]) for method, path in list(OPERATIONS)[not more :]]
    with pytest.raises(LookupError, match=more or "chat"):
        document(served_by(Starlette(routes=[*routes, *extra])))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"object": "list", "data": [], "more": 1}),
        (200, {"object": "list"}),
        (200, {"object": "list", "data": [{"id": "x"}]}),
        (418, {"error": {"message": "x", "type": "server_error", "param": None, "code": "x"}}),
        (503, {"error": {"message": "x", "type": "server_error", "code": "x"}}),
    ],
)
async def test_an_answer_that_is_not_as_described_is_noticed(status: int, body: Any) -> None:
    request = httpx.Request("GET", "http://gateway/v1/models")
    response = httpx.Response(status, json=body, headers={"X-Request-Id": "x"}, request=request)
    with pytest.raises(AssertionError, match=r"not as described|not documented"):
        await check_response(response)


def test_an_event_or_message_that_is_not_as_described_is_noticed() -> None:
    shape = described()["paths"][CHAT]["post"]["responses"]["200"]["content"]["text/event-stream"]["x-event"]
    with pytest.raises(AssertionError, match="not as described"):
        check_events('data: {"choices": []}\n\ndata: [DONE]\n\n', shape)
    with pytest.raises(AssertionError, match="not as described"):
        check_socket_message({"type": "delta", "request_id": "a", "index": 0})


async def test_a_socket_path_asks_for_the_upgrade_and_slashes_redirect_nobody() -> None:
    async with gateway_on_fakes() as fleet:
        response = await fleet.http.get("/v1/stream")
        assert response.status_code == 426
        assert response.headers["upgrade"] == "websocket"
        assert (await fleet.http.post("/tokenize/", json={})).status_code == 404
        wrong = await fleet.http.request("TRACE", CHAT)
        assert wrong.status_code == 405
        assert wrong.headers["allow"] == "POST"


def with_a_model_that_exists(served: dict[str, Any]) -> dict[str, Any]:
    """The document as a tester wants it: made-up names of models would all end in a 404."""
    for schema in served["components"]["schemas"].values():
        if schema.get("properties", {}).get("model", {}).get("maxLength"):
            schema["properties"]["model"] = {"const": "letters"}
    return served


# A 504 is what a request gets that allows itself no time: everything else above 499 would be a fault. Headers
# that nobody described are no fault of the client's.
CONFIGURATION = """
[generation]
allow-extra-parameters = false
[checks]
positive_data_acceptance.enabled = false
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 504]
"""


@pytest.mark.timeout(BUDGET_S + 30)
async def test_schemathesis_finds_no_answer_that_the_document_does_not_allow(tmp_path: Path) -> None:
    """No fault of the gateway's, no undocumented answer, and nothing taken that the schemas refuse."""
    async with gateway_on_fakes() as fleet:
        served = (await fleet.http.get("/openapi.json")).json()
        (tmp_path / "openapi.json").write_text(json.dumps(with_a_model_that_exists(served)))
        (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
        fleet.workers[0].longest = 9
        finder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", fleet.url),
            *("--phases", "coverage,fuzzing", "--max-examples", f"{EXAMPLES}", "--generation-deterministic"),
            *("--request-timeout", "10", "--max-failures", "5"),
            *("--warnings", "off", "--no-color"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(BUDGET_S):
                output, _ = await finder.communicate()
        finally:
            if finder.returncode is None:
                finder.kill()
        assert finder.returncode == 0, output.decode()
        assert len(fleet.workers[0].submits) > EXAMPLES
        await fleet.idle()
        assert (await fleet.http.post(CHAT, json=chat())).status_code == 200
