"""Keys and certificates on the SDK's connections, seen from a server that asks for them."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.contract.any_client import KINDS, client_of
from tokenfleet.client import Tls, Unauthenticated, Unavailable
from tokenfleet.runtime.errors import FleetError, abort
from tokenfleet.v1 import common_pb2, inference_pb2, inference_pb2_grpc

either = pytest.mark.parametrize("kind", KINDS)
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates")


@dataclass
class Server(inference_pb2_grpc.InferenceServicer):
    """Lists no models, to those who have the key."""

    key: str = "secret"
    seen: list[dict[str, Any]] = field(default_factory=list)
    identities: list[Any] = field(default_factory=list)

    async def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:
        self.seen.append(dict(context.invocation_metadata()))
        self.identities.append(context.auth_context().get("x509_common_name"))
        if self.seen[-1].get("authorization") != f"Bearer {self.key}":
            await abort(context, FleetError(common_pb2.REASON_UNAUTHENTICATED, "the API key is unknown"))
        return inference_pb2.ListModelsResponse()


@asynccontextmanager
async def serving(credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[tuple[Server, str]]:
    servicer = Server()  # type: ignore[abstract]
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of a server named fleet.test and of a client."""
    folder = tmp_path_factory.mktemp("certificates")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        folder, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2"
    )
    for name in ("fleet.test", "client.test"):
        (folder / "extensions").write_text(f"subjectAltName=DNS:{name}\n")
        openssl(folder, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions")
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", "-days", "2", *signed)
    return folder


def server_credentials(certificates: Path, *, mutual: bool) -> grpc.ServerCredentials:
    pair = (certificates / "fleet.test.key").read_bytes(), (certificates / "fleet.test.pem").read_bytes()
    authority = (certificates / "ca.pem").read_bytes() if mutual else None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=mutual)


@either
async def test_the_key_goes_with_every_call(kind: str) -> None:
    async with serving() as (server, target):
        async with client_of(kind, target, api_key="secret") as client:
            assert await client.call("models") == []
        async with client_of(kind, target, api_key="guess") as client:
            with pytest.raises(Unauthenticated, match="unknown"):
                await client.call("models")
        async with client_of(kind, target) as client:
            with pytest.raises(Unauthenticated):
                await client.call("models")
        assert server.seen[0]["user-agent"].startswith("tokenfleet-python/")


@needs_openssl
@either
async def test_tls_trusts_who_it_is_told_to_trust(kind: str, certificates: Path) -> None:
    async with serving(server_credentials(certificates, mutual=False)) as (_, target):
        trusting = Tls(root_certificates=certificates / "ca.pem", server_name="fleet.test")
        async with client_of(kind, target, api_key="secret", tls=trusting) as client:
            assert await client.call("models") == []
        for tls in (True, Tls(root_certificates=certificates / "ca.pem"), False):
            async with client_of(kind, target, api_key="secret", tls=tls, attempts=1) as client:
                with pytest.raises(Unavailable):
                    await client.call("models")


@needs_openssl
@either
async def test_mutual_tls_shows_the_clients_certificate(kind: str, certificates: Path) -> None:
    async with serving(server_credentials(certificates, mutual=True)) as (server, target):
        tls = Tls(
            root_certificates=(certificates / "ca.pem").read_bytes(),
            private_key=certificates / "client.test.key",
            certificate_chain=str(certificates / "client.test.pem"),
            server_name="fleet.test",
        )
        async with client_of(kind, target, api_key="secret", tls=tls) as client:
            assert await client.call("models") == []
        assert server.identities == [[b"client.test"]]
        nameless = Tls(root_certificates=certificates / "ca.pem", server_name="fleet.test")
        async with client_of(kind, target, api_key="secret", tls=nameless, attempts=1) as client:
            with pytest.raises(Unavailable):
                await asyncio.wait_for(client.call("models"), 10)
