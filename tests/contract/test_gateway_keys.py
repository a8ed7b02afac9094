"""API keys at the gateway's three doors: who gets in, as whom, and what everybody else is told."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.contract.fake_fleet import FakeFleet, answer, gateway_on_fakes
from tests.contract.keys import bearer, made_key, write_keys
from tests.contract.service_process import running
from tests.contract.test_gateway_grpc import chatting, deltas, failure_of, generating, text_of
from tests.contract.test_gateway_http import chat, until
from tests.contract.test_gateway_websocket import closed, hear, hear_out, send
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import inference_pb2 as api
from tokenfleet.v1 import inference_pb2_grpc

CHAT = "/v1/chat/completions"
PAGE = {"Origin": "http://localhost:3000"}


class Guarded:
    """A gateway with one key, and where to write others."""

    def __init__(self, fleet: FakeFleet, path: Path, key: str, line: str) -> None:
        self.fleet = fleet
        self.path = path
        self.key = key
        self.line = line

    @property
    def untouched(self) -> bool:
        """Whether nothing behind the gateway has heard of anybody."""
        return not (self.fleet.tokenizer.jobs or self.fleet.router.asks)


@asynccontextmanager
async def guarded(path: Path, **fields: Any) -> AsyncIterator[Guarded]:
    key, line = made_key("acme", **fields)
    file = write_keys(path / "keys", line)
    async with gateway_on_fakes(api_keys_file=file, reload_poll_s=0.02) as fleet:
        yield Guarded(fleet, file, key, line)


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error: dict[str, Any] = response.json()["error"]
    return error


# -- HTTP ------------------------------------------------------------------------------------------


async def test_a_key_opens_http_and_names_the_tenant(tmp_path: Path) -> None:
    async with guarded(tmp_path) as door:
        response = await door.fleet.http.post(CHAT, json=chat(), headers=bearer(door.key))
        assert response.json()["choices"][0]["message"]["content"] == answer("hello", 20)
        assert door.fleet.tokenizer.jobs[0].context.tenant == "acme"
        assert door.fleet.router.asks[0].context.tenant == "acme"
        body = {"model": "letters", "prompt": "hi"}
        tokens = await door.fleet.http.post("/tokenize", json=body, headers=bearer(door.key))
        assert tokens.json()["count"] == 2
        assert door.fleet.tokenizer.jobs[1].context.tenant == "acme"


@pytest.mark.parametrize("headers", [{}, bearer("guess"), {"Authorization": "Basic eA=="}])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/models", "/tokenize", "/metrics", "/other"])
async def test_without_a_key_nothing_is_done(tmp_path: Path, path: str, headers: dict[str, str]) -> None:
    async with guarded(tmp_path) as door:
        method = "GET" if path in ("/v1/models", "/metrics") else "POST"
        response = await door.fleet.http.request(method, path, headers=headers | PAGE, content=b"no JSON")
        assert error_of(response)["code"] == "invalid_api_key"
        assert response.headers["access-control-allow-origin"] == PAGE["Origin"]
        assert door.untouched


async def test_a_refused_body_stays_unread_and_the_connection_in_use(tmp_path: Path) -> None:
    async with guarded(tmp_path) as door:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=door.fleet.url, limits=limits, timeout=10) as client:
            refused = await client.post(CHAT, content=b"x" * 4_000_000, headers=bearer("guess"))
            assert error_of(refused)["code"] == "invalid_api_key"
            good = await client.post(CHAT, json=chat(), headers=bearer(door.key))
            assert good.status_code == 200


async def test_probes_and_preflights_need_no_key(tmp_path: Path) -> None:
    async with guarded(tmp_path) as door:
        for path in ("/health/live", "/health/ready"):
            assert (await door.fleet.http.get(path)).status_code == 200
        asking = PAGE | {"Access-Control-Request-Method": "POST"}
        allowed = await door.fleet.http.options(CHAT, headers=asking)
        assert allowed.status_code == 204
        assert "authorization" in allowed.headers["access-control-allow-headers"]


async def test_metrics_of_all_tenants_are_shown_to_none(tmp_path: Path) -> None:
    async with guarded(tmp_path) as door:
        response = await door.fleet.http.get("/metrics", headers=bearer(door.key))
        assert response.status_code == 404
        assert "--metrics-listen" in response.json()["error"]["message"]
    async with gateway_on_fakes() as fleet:
        assert (await fleet.http.get("/metrics")).status_code == 200


async def test_the_stock_client_says_what_is_wrong(tmp_path: Path) -> None:
    async with guarded(tmp_path) as door:
        base = f"{door.fleet.url}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="guess", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.models.list()
            assert caught.value.code == "invalid_api_key"
        async with openai.AsyncOpenAI(base_url=base, api_key=door.key, max_retries=0) as client:
            assert [model.id for model in (await client.models.list()).data] == ["letters"]


async def test_a_key_added_or_removed_takes_effect_without_a_restart(tmp_path: Path) -> None:
    async with guarded(tmp_path) as door:

        async def admitted(key: str) -> bool:
            response = await door.fleet.http.get("/v1/models", headers=bearer(key))
            return response.status_code == 200

        new, line = made_key("emca")
        assert not await admitted(new)
        write_keys(door.path, door.line, line)
        async with asyncio.timeout(10):
            while not await admitted(new):
                await asyncio.sleep(0.01)
        assert await admitted(door.key)
        write_keys(door.path, line)
        async with asyncio.timeout(10):
            while await admitted(door.key):
                await asyncio.sleep(0.01)
        assert await admitted(new)


# -- gRPC ------------------------------------------------------------------------------------------


@asynccontextmanager
async def stub_of(door: Guarded) -> AsyncIterator["inference_pb2_grpc.InferenceAsyncStub"]:
    async with grpc.aio.insecure_channel(door.fleet.grpc) as channel:
        yield inference_pb2_grpc.InferenceStub(channel)


def metadata_of(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def test_a_key_opens_grpc_and_names_the_tenant(tmp_path: Path) -> None:
    async with guarded(tmp_path) as door, stub_of(door) as stub:
        seen = await deltas(stub.Chat(chatting(), metadata=metadata_of(door.key)))
        assert text_of(seen) == answer("hello", 20)
        await stub.CountTokens(
            api.CountTokensRequest(model="letters", text="x"), metadata=metadata_of(door.key)
        )
        assert {job.context.tenant for job in door.fleet.tokenizer.jobs} == {"acme"}


@pytest.mark.parametrize("metadata", [(), metadata_of("guess"), (("authorization", "guess"),)])
async def test_grpc_without_a_key_is_unauthenticated(tmp_path: Path, metadata: Any) -> None:
    async with guarded(tmp_path) as door, stub_of(door) as stub:
        calls = [
            deltas(stub.Generate(generating(), metadata=metadata)),
            deltas(stub.Chat(chatting(), metadata=metadata)),
            _awaited(stub.CountTokens(api.CountTokensRequest(), metadata=metadata)),
            _awaited(stub.ListModels(api.ListModelsRequest(), metadata=metadata)),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(call, 10)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert failure_of(caught.value)[0] == "UNAUTHENTICATED"
        assert door.untouched


async def _awaited(call: Any) -> Any:
    return await call


async def test_grpc_requests_stay_below_their_keys_class(tmp_path: Path) -> None:
    async with guarded(tmp_path, ceiling=pb.PRIORITY_BATCH) as door, stub_of(door) as stub:
        urgent = generating(priority=pb.PRIORITY_INTERACTIVE)
        await deltas(stub.Generate(urgent, metadata=metadata_of(door.key)))
        await door.fleet.http.post(CHAT, json=chat(), headers=bearer(door.key))
        assert [ask.context.priority for ask in door.fleet.router.asks] == [pb.PRIORITY_BATCH] * 2


# -- WebSocket -------------------------------------------------------------------------------------


def socket_of(door: Guarded, **options: Any) -> connect:
    return connect(door.fleet.url.replace("http", "ws") + "/v1/stream", **options)


async def test_a_key_opens_the_socket(tmp_path: Path) -> None:
    async with guarded(tmp_path) as door, socket_of(door, additional_headers=bearer(door.key)) as client:
        await send(client, chat(request_id="mine"))
        assert (await hear_out(client))[-1]["type"] == "finish"
        assert door.fleet.router.asks[0].context.tenant == "acme"


async def test_a_page_shows_its_key_as_a_subprotocol(tmp_path: Path) -> None:
    async with guarded(tmp_path) as door:
        offered: Any = ["tokenfleet", f"tokenfleet-key.{door.key}"]
        async with socket_of(door, subprotocols=offered, origin=PAGE["Origin"]) as client:
            assert client.subprotocol == "tokenfleet"  # and the key is not sent back
            await send(client, chat(request_id="mine"))
            assert (await hear_out(client))[-1]["type"] == "finish"


@pytest.mark.parametrize("offered", [[], ["tokenfleet"], ["tokenfleet", "tokenfleet-key.guess"]])
async def test_a_page_without_a_key_is_told_on_the_socket(tmp_path: Path, offered: Any) -> None:
    async with guarded(tmp_path) as door:
        async with socket_of(door, subprotocols=offered or None, origin=PAGE["Origin"]) as client:
            error = await hear(client)
            assert error["error"]["code"] == "invalid_api_key"
            assert await closed(client) == 3000
        assert door.untouched


async def test_other_clients_without_a_key_are_refused_in_the_handshake(tmp_path: Path) -> None:
    async with guarded(tmp_path) as door:
        for headers in ({}, bearer("guess")):
            with pytest.raises(InvalidStatus) as caught:
                await socket_of(door, additional_headers=headers)
            assert caught.value.response.status_code == 401
            assert b"invalid_api_key" in caught.value.response.body
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"{door.fleet.url.replace('http', 'ws')}/v1/stream?api_key={door.key}")
        assert caught.value.response.status_code == 401


async def test_an_open_gateway_takes_the_subprotocol_too() -> None:
    async with gateway_on_fakes() as fleet:
        offered: Any = ["tokenfleet"]
        url = fleet.url.replace("http", "ws") + "/v1/stream"
        async with connect(url, subprotocols=offered, origin=PAGE["Origin"]) as client:  # type: ignore[arg-type]
            assert client.subprotocol == "tokenfleet"


async def test_a_key_that_was_removed_starts_nothing_on_a_socket_that_is_open(tmp_path: Path) -> None:
    async with guarded(tmp_path) as door, socket_of(door, additional_headers=bearer(door.key)) as client:
        door.fleet.workers[0].hold = True
        await send(client, chat(request_id="before"))
        await until(lambda: door.fleet.workers[0].running)
        write_keys(door.path, made_key()[1])
        async with asyncio.timeout(10):
            while (await door.fleet.http.get("/v1/models", headers=bearer(door.key))).status_code == 200:
                await asyncio.sleep(0.01)
        await send(client, chat(request_id="after"))
        refused = await hear(client)
        assert (refused["request_id"], refused["error"]["code"]) == ("after", "invalid_api_key")
        door.fleet.workers[0].hold = False
        door.fleet.workers[0].step()
        assert (await hear_out(client))[-1]["request_id"] == "before", "what runs may finish"


# -- the process -----------------------------------------------------------------------------------


async def test_a_bad_keys_file_stops_the_start(tmp_path: Path) -> None:
    file = write_keys(tmp_path / "keys", made_key()[1], '{"id": "x"}')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tokenfleet.gateway", "--api-keys-file", str(file)),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert f"--api-keys-file: {file}, line 2: sha256: expected" in said.decode()
    assert "Traceback" not in said.decode()


async def test_an_open_gateway_on_the_network_warns() -> None:
    flags = ("--http-listen", "0.0.0.0:0")
    async with running("gateway", *flags) as gateway:
        warning = next(record for record in gateway.log if record.get("level") == "warning")
        assert warning["listen"] == ["0.0.0.0:0"]
        assert "--api-keys-file" in warning["event"]


async def test_no_key_is_ever_logged(tmp_path: Path) -> None:
    key, line = made_key()
    file = write_keys(tmp_path / "keys", line)
    flags = ("--http-listen", "127.0.0.1:0", "--api-keys-file", str(file), "--log-level", "debug")
    async with running("gateway", *flags) as gateway:
        (serving,) = await gateway.logged("serving")
        url = f"127.0.0.1:{serving['http']}"
        async with httpx.AsyncClient(base_url=f"http://{url}") as client:
            assert (await client.get("/v1/models", headers=bearer(key))).status_code == 200
            assert (await client.get("/v1/models", headers=bearer(key + "x"))).status_code == 401
        offered: Any = ["tokenfleet", f"tokenfleet-key.{key}"]
        async with connect(f"ws://{url}/v1/stream", subprotocols=offered) as socket:
            await socket.close()
        async with connect(f"ws://{url}/v1/stream", subprotocols=[*offered[:1], offered[1] + "x"]) as socket:
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(_until_closed(socket), 10)
    assert key not in json.dumps(gateway.log)


async def _until_closed(socket: Any) -> None:
    while True:
        await socket.recv()
