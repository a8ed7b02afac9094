"""Links between processes with certificates: who is let in, who is not and why, what a renewal disturbs."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.certificates import DOMAIN, Authority
from tests.unit.links.test_links import Echo, Recorder, cancel, connect, until
from tokenfleet.runtime.grpc_host import GrpcHost, PeerChannel
from tokenfleet.runtime.links import DialError, LinkServer, PeerRefusedError
from tokenfleet.runtime.links.frames import FrameLink
from tokenfleet.runtime.tls import Certificate, Identity, PemFiles, adopt
from tokenfleet.v1 import worker_pb2_grpc

both_ways = pytest.mark.parametrize("frames", [True, False], ids=["frames", "grpc"])


@pytest.fixture(scope="module")
def ours() -> Authority:
    return Authority()


@pytest.fixture(autouse=True)
def _in_the_clear_again() -> Iterator[None]:
    yield
    adopt(None)


def identity_of(folder: Path, role: str, authority: Authority, trusted: Authority | None = None) -> Identity:
    """A certificate for `role`, in a folder of its own."""
    folder.mkdir()
    authority.write_peers(folder, [role])
    files = PemFiles(folder / f"{role}.pem", folder / f"{role}.key", folder / "ca.pem")
    identity = Identity(Certificate(files, name=f"{role}.{DOMAIN}", poll_s=60), DOMAIN)
    if trusted is not None:
        trusted.write_ca(folder)
        identity.certificate.loaded.client.load_verify_locations(files.ca)  # type: ignore[union-attr]
        object.__setattr__(identity.certificate.loaded, "ca", trusted.pem)
    return identity


@contextmanager
def being(identity: Identity | None) -> Iterator[None]:
    """This process, for a while, is that one."""
    adopt(identity)
    try:
        yield
    finally:
        adopt(None)


@asynccontextmanager
async def serving_as(identity: Identity | None) -> AsyncIterator[tuple[str, Echo]]:
    links = LinkServer()
    echo = Echo(links)  # type: ignore[abstract]
    with being(identity):
        host = GrpcHost(
            "tokenfleet.v1.Worker",
            lambda server: worker_pb2_grpc.add_WorkerServicer_to_server(echo, server),
            listen="127.0.0.1:0",
        )
        port = await host.start()
        await links.start_frames("127.0.0.1:0")
    try:
        yield f"127.0.0.1:{port}", echo
    finally:
        await links.stop()
        await host.stop(0)


async def connect_as(identity: Identity | None, target: str, frames: bool) -> Recorder:
    with being(identity):
        async with asyncio.timeout(20):
            return await connect(target, frames)


async def echoed(client: Recorder, slot: int = 7) -> None:
    before = len(client.messages)
    client.link.send(cancel(slot))
    await until(lambda: len(client.messages) > before)
    assert list(client.messages[-1].step.slots) == [slot]


@both_ways
async def test_peers_of_one_authority_talk(tmp_path: Path, ours: Authority, frames: bool) -> None:
    worker, gateway = (identity_of(tmp_path / role, role, ours) for role in ("worker", "gateway"))
    async with serving_as(worker) as (target, _):
        client = await connect_as(gateway, target, frames)
        assert isinstance(client.link, FrameLink) is frames
        await echoed(client)
        client.link.close()
        await asyncio.wait_for(client.ended.wait(), 5)


@both_ways
async def test_a_peer_in_another_role_is_not_taken_for_a_worker(
    tmp_path: Path, ours: Authority, frames: bool
) -> None:
    router, gateway = (identity_of(tmp_path / role, role, ours) for role in ("router", "gateway"))
    async with serving_as(router) as (target, _):
        with pytest.raises(PeerRefusedError, match=f"not valid for 'worker.{DOMAIN}'"):
            await connect_as(gateway, target, frames)


@both_ways
async def test_a_peer_of_another_authority_is_refused_by_both(
    tmp_path: Path, ours: Authority, frames: bool
) -> None:
    worker = identity_of(tmp_path / "worker", "worker", ours)
    stranger = identity_of(tmp_path / "stranger", "gateway", Authority())
    credulous = identity_of(tmp_path / "credulous", "gateway", Authority(), trusted=ours)
    async with serving_as(worker) as (target, echo):
        with pytest.raises(PeerRefusedError, match="its certificate is refused here"):
            await connect_as(stranger, target, frames)
        with pytest.raises(PeerRefusedError, match="it refuses the certificate of this process"):
            await connect_as(credulous, target, frames)
        assert not echo.sessions


@both_ways
async def test_talk_in_the_clear_is_refused_by_both(tmp_path: Path, ours: Authority, frames: bool) -> None:
    worker, gateway = (identity_of(tmp_path / role, role, ours) for role in ("worker", "gateway"))
    async with serving_as(worker) as (target, _):
        with pytest.raises(DialError):
            await connect_as(None, target, frames)
    async with serving_as(None) as (target, _):
        with pytest.raises(PeerRefusedError, match="speaks no TLS"):
            await connect_as(gateway, target, frames)


async def refusals(port: int, *, context: Any = None, name: str | None = None) -> list[str]:
    """What the frames' door logs about a connection."""
    with capture_logs() as logged:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        writer.write(b"x" * 64)
        async with asyncio.timeout(10):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError, OSError)):
                await reader.readexactly(1)
        await until(lambda: logged)
        writer.transport.abort()
    assert {record["event"] for record in logged} == {"peer refused"}
    return [record["cause"] for record in logged]


async def test_the_door_for_frames_says_why_it_refuses(tmp_path: Path, ours: Authority) -> None:
    worker = identity_of(tmp_path / "worker", "worker", ours)
    credulous = identity_of(tmp_path / "credulous", "gateway", Authority(), trusted=ours)
    expired = identity_of(tmp_path / "expired", "gateway", ours)
    cert, key = ours.write(tmp_path / "expired", "gateway", f"gateway.{DOMAIN}", expired=True)
    expired.client_context.load_cert_chain(cert, key)
    name = worker.name_of("worker")
    async with serving_as(worker) as (_, echo):
        port = echo.links.port
        assert await refusals(port) == ["WRONG_VERSION_NUMBER"]
        (cause,) = await refusals(port, context=credulous.client_context, name=name)
        assert "certificate in certificate chain" in cause or "local issuer certificate" in cause
        assert await refusals(port, context=expired.client_context, name=name) == ["certificate has expired"]


@both_ways
async def test_a_renewal_disturbs_nobody(tmp_path: Path, ours: Authority, frames: bool) -> None:
    """First both authorities are trusted, then the certificates change, then the old authority goes."""
    other = Authority()
    worker, gateway = (identity_of(tmp_path / role, role, ours) for role in ("worker", "gateway"))

    def renewed() -> None:
        for identity in (worker, gateway):
            identity.certificate._watch.check()

    async with serving_as(worker) as (target, _):
        first = await connect_as(gateway, target, frames)
        for role in ("worker", "gateway"):
            ours.write_ca(tmp_path / role, other)
        renewed()
        second = await connect_as(gateway, target, frames)
        for role in ("worker", "gateway"):
            other.write(tmp_path / role, role, f"{role}.{DOMAIN}")
        renewed()
        third = await connect_as(gateway, target, frames)
        for role in ("worker", "gateway"):
            other.write_ca(tmp_path / role)
        renewed()
        fourth = await connect_as(gateway, target, frames)
        for client in (first, second, third, fourth):
            await echoed(client)
        old = identity_of(tmp_path / "old", "gateway", ours, trusted=other)
        with pytest.raises(PeerRefusedError, match="it refuses the certificate"):
            await connect_as(old, target, frames)
        for client in (first, second, third, fourth):
            client.link.abort()


async def test_a_channel_for_rare_calls_follows_a_renewal(tmp_path: Path, ours: Authority) -> None:
    gateway = identity_of(tmp_path / "gateway", "gateway", ours)
    with being(gateway):
        channel = PeerChannel("127.0.0.1:1", "router")
        first = channel.get()
        assert channel.get() is first
        ours.write(tmp_path / "gateway", "gateway", f"gateway.{DOMAIN}")
        gateway.certificate._watch.check()
        assert channel.get() is not first
        await channel.close()
