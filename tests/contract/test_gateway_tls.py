"""TLS at the gateway's edge: for every protocol and stock client, with keys, renewed without a restart."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from websockets.asyncio.client import connect

from tests.certificates import Authority
from tests.contract.any_client import KINDS, client_of
from tests.contract.fake_fleet import FakeFleet, answer, gateway_on_fakes
from tests.contract.keys import bearer, made_key, write_keys
from tests.contract.service_process import running
from tests.contract.test_gateway_http import chat
from tests.contract.test_gateway_websocket import closed, hear_out, send
from tokenfleet.client import FleetClient, Tls, Unauthenticated, Unavailable
from tokenfleet.gateway.edge_tls import edge_tls
from tokenfleet.gateway.settings import GatewaySettings
from tokenfleet.runtime.lifecycle import StartupError

CHAT = "/v1/chat/completions"
NAMES = ("127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def ours() -> Authority:
    return Authority()


@asynccontextmanager
async def secure(folder: Path, ours: Authority, **changed: Any) -> AsyncIterator[tuple[FakeFleet, str]]:
    """A gateway with TLS and one key."""
    cert, key = ours.write(folder, "edge", *NAMES)
    api_key, line = made_key()
    known: dict[str, Any] = {
        "edge_tls_cert": cert,
        "edge_tls_key": key,
        "api_keys_file": write_keys(folder / "keys", line),
        "reload_poll_s": 0.02,
    }
    async with gateway_on_fakes(trusted=ours.pem, **(known | changed)) as fleet:
        yield fleet, api_key


def context_of(trusted: bytes) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=trusted.decode())


def serial_at(port: str, context: ssl.SSLContext, alpn: str = "") -> str:
    """Of the certificate that a new connection is shown."""
    if alpn:
        context.set_alpn_protocols([alpn])
    with (
        socket.create_connection(("127.0.0.1", int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        certificate: Any = connection.getpeercert()
        return str(certificate["serialNumber"])


async def test_http_and_websocket_over_tls(tmp_path: Path, ours: Authority) -> None:
    async with secure(tmp_path, ours) as (fleet, key):
        response = await fleet.http.post(CHAT, json=chat(), headers=bearer(key))
        assert response.json()["choices"][0]["message"]["content"] == answer("hello", 20)
        url = fleet.url.replace("https", "wss") + "/v1/stream"
        async with connect(url, ssl=context_of(ours.pem), additional_headers=bearer(key)) as client:
            await send(client, chat(request_id="mine"))
            assert (await hear_out(client))[-1]["type"] == "finish"
        offered: Any = ["tokenfleet", "tokenfleet-key.guess"]
        async with connect(url, ssl=context_of(ours.pem), subprotocols=offered) as client:
            assert await closed(client) == 3000


async def test_the_stock_openai_client_with_a_private_authority(tmp_path: Path, ours: Authority) -> None:
    async with secure(tmp_path, ours) as (fleet, key):
        base = f"{fleet.url}/v1"
        async with openai.DefaultAsyncHttpxClient(verify=context_of(ours.pem)) as http:
            client = openai.AsyncOpenAI(base_url=base, api_key=key, http_client=http, max_retries=0)
            stream = await client.chat.completions.create(
                model="letters", messages=[{"role": "user", "content": "hello"}], max_tokens=20, stream=True
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
            assert text == answer("hello", 20)
            guessing = openai.AsyncOpenAI(base_url=base, api_key="guess", http_client=http, max_retries=0)
            with pytest.raises(openai.AuthenticationError):
                await guessing.models.list()
        async with openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0) as untrusting:
            with pytest.raises(openai.APIConnectionError):
                await untrusting.models.list()


@pytest.mark.parametrize("kind", KINDS)
async def test_our_clients_with_keys_over_tls(tmp_path: Path, ours: Authority, kind: str) -> None:
    async with secure(tmp_path, ours) as (fleet, key):
        tls = Tls(root_certificates=ours.pem)
        messages = [{"role": "user", "content": "hello"}]
        async with client_of(kind, fleet.grpc, api_key=key, tls=tls) as client:
            got = await client.result("chat", "letters", messages, max_tokens=20)
            assert got.text == answer("hello", 20)
        async with client_of(kind, fleet.grpc, api_key="guess", tls=tls) as client:
            with pytest.raises(Unauthenticated):
                await client.call("models")
        async with client_of(kind, fleet.grpc, api_key=key, tls=Tls(), attempts=1) as client:
            with pytest.raises(Unavailable):
                await client.call("models")


async def test_what_is_no_tls_or_old_is_refused(tmp_path: Path, ours: Authority) -> None:
    async with secure(tmp_path, ours) as (fleet, key):
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.TransportError):
                await client.get(fleet.url.replace("https", "http") + "/health/live")
        with FleetClient(fleet.grpc, api_key=key, attempts=1) as plain, pytest.raises(Unavailable):
            await asyncio.to_thread(plain.models)
        for port in (fleet.url.rpartition(":")[2], fleet.grpc.rpartition(":")[2]):
            old = context_of(ours.pem)
            old.set_ciphers("ALL:@SECLEVEL=0")
            old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises(ssl.SSLError, match=r"(?i)protocol"):
                await asyncio.to_thread(serial_at, port, old, "h2")
            newer = context_of(ours.pem)
            newer.maximum_version = ssl.TLSVersion.TLSv1_2
            assert await asyncio.to_thread(serial_at, port, newer, "h2")


async def test_a_large_body_without_a_key_gets_its_answer(tmp_path: Path, ours: Authority) -> None:
    async with secure(tmp_path, ours) as (fleet, _):
        refused = await fleet.http.post(CHAT, content=b"x" * 4_000_000, headers=bearer("guess"))
        assert refused.json()["error"]["code"] == "invalid_api_key"


async def test_clients_need_certificates_where_there_is_an_authority_for_them(
    tmp_path: Path, ours: Authority
) -> None:
    theirs = Authority()
    cert, key = ours.write(tmp_path, "edge", *NAMES)
    client_cert, client_key = theirs.write(tmp_path, "client", "client.test")
    own = context_of(ours.pem)
    own.load_cert_chain(client_cert, client_key)
    flags = ("--http-listen", "127.0.0.1:0", "--edge-tls-cert", str(cert), "--edge-tls-key", str(key))
    ca = theirs.write_ca(tmp_path)
    async with running("gateway", *flags, "--edge-tls-client-ca", str(ca)) as gateway:
        (serving,) = await gateway.logged("serving")
        url = f"https://127.0.0.1:{serving['http']}/health/live"
        patient = httpx.AsyncHTTPTransport(verify=own, retries=5)  # it may not quite listen yet
        async with httpx.AsyncClient(transport=patient) as known:
            assert (await known.get(url)).status_code == 200
        async with httpx.AsyncClient(verify=context_of(ours.pem)) as unknown:
            with pytest.raises(httpx.TransportError):
                await unknown.get(url)
        target = f"127.0.0.1:{serving['grpc']}"
        known_pair = client_key.read_bytes(), client_cert.read_bytes()
        await asked_of_health(target, grpc.ssl_channel_credentials(ours.pem, *known_pair))
        with pytest.raises(grpc.aio.AioRpcError):
            await asked_of_health(target, grpc.ssl_channel_credentials(ours.pem))


async def asked_of_health(target: str, credentials: grpc.ChannelCredentials | None) -> None:
    """Raises AioRpcError when the gateway's gRPC does not answer us."""
    channel = (
        grpc.aio.secure_channel(target, credentials) if credentials else grpc.aio.insecure_channel(target)
    )
    async with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)


async def test_a_renewed_certificate_is_shown_and_running_answers_go_on(
    tmp_path: Path, ours: Authority
) -> None:
    async with secure(tmp_path, ours) as (fleet, key):
        doors = [(fleet.url.rpartition(":")[2], ""), (fleet.grpc.rpartition(":")[2], "h2")]

        async def serials() -> list[str]:
            return [
                await asyncio.to_thread(serial_at, port, context_of(ours.pem), alpn) for port, alpn in doors
            ]

        before = await serials()
        assert len(set(before)) == 1, "HTTP and gRPC show the same one"
        fleet.workers[0].hold = True
        running = asyncio.create_task(fleet.http.post(CHAT, json=chat(), headers=bearer(key)))
        async with asyncio.timeout(10):
            while not fleet.workers[0].running:
                await asyncio.sleep(0.01)
        ours.write(tmp_path, "edge", *NAMES)
        async with asyncio.timeout(10):
            while set(after := await serials()) & set(before):
                await asyncio.sleep(0.02)
        assert len(set(after)) == 1
        fleet.workers[0].hold = False
        fleet.workers[0].step()
        assert (await asyncio.wait_for(running, 10)).status_code == 200
        (tmp_path / "edge.pem").write_text("broken")
        await asyncio.sleep(0.1)
        assert await serials() == after, "a broken one is not taken"


def settings_of(**given: Any) -> GatewaySettings:
    return GatewaySettings(**given)


def test_half_of_the_settings_is_an_error(tmp_path: Path, ours: Authority) -> None:
    cert, key = ours.write(tmp_path, "edge", *NAMES)
    with pytest.raises(StartupError, match="set --edge-tls-key too"):
        edge_tls(settings_of(edge_tls_cert=cert))
    with pytest.raises(StartupError, match="set --edge-tls-cert too"):
        edge_tls(settings_of(edge_tls_key=key))
    assert edge_tls(settings_of()) is None


async def test_probes_of_health_need_no_certificate(tmp_path: Path, ours: Authority) -> None:
    """Beside the metrics, for whoever cannot show one."""
    cert, key = ours.write(tmp_path, "edge", *NAMES)
    flags = ("--http-listen", "127.0.0.1:0", "--edge-tls-cert", str(cert), "--edge-tls-key", str(key))
    async with running("gateway", *flags) as gateway, httpx.AsyncClient() as client:
        base = gateway.metrics.removesuffix("/metrics")
        assert (await client.get(f"{base}/health/live")).status_code == 200
        assert (await client.get(f"{base}/health/ready")).status_code == 503, "it has no peers"
        assert "tokenfleet_gateway" in (await client.get(gateway.metrics)).text
        with pytest.raises(grpc.aio.AioRpcError):
            await asked_of_health(gateway.address, None)
