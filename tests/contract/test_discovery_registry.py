"""Workers that keep leases in a real store, and those who find them there."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.contract.router_harness import router_between
from tests.contract.scripted_worker import ScriptedWorker
from tests.contract.service_process import ServiceProcess, launch
from tokenfleet.cli.local_fleet.store import server_binary
from tokenfleet.runtime.discovery import Discovery, Peer, Registration, RegistryRef

AWAY = "registry cannot be read, the last known peers stay"
LONG_S, SHORT_S = 60.0, 1.5  # leases: one that no test sees the end of, and one that every test can
PATIENCE_S = 20.0


class Store:
    """A store that forgets everything when it is killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process: asyncio.subprocess.Process | None = None
        self.registry = f"unix://{path}/store.sock#workers"

    async def start(self) -> None:
        socket = self._path / "store.sock"
        socket.unlink(missing_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            *(str(server_binary()), "--port", "0", "--unixsocket", str(socket)),
            *("--save", "", "--dir", str(self._path)),
            stdout=asyncio.subprocess.DEVNULL,
        )
        await until(socket.exists)

    async def kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        async with asyncio.timeout(PATIENCE_S):
            await self._process.wait()


class Followed:
    """What discovery said, in order."""

    def __init__(self) -> None:
        self.peers: dict[str, Peer] = {}
        self.left: list[str] = []

    def peer_came(self, peer: Peer) -> None:
        self.peers[peer.target] = peer

    def peer_changed(self, peer: Peer) -> None:
        self.peers[peer.target] = peer

    def peer_left(self, target: str) -> None:
        del self.peers[target]
        self.left.append(target)


async def until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path)
    await store.start()
    try:
        yield store
    finally:
        await store.kill()


@pytest.fixture
async def followed(store: Store) -> AsyncIterator[Followed]:
    followed = Followed()
    discovery = Discovery([store.registry], followed)
    discovery.start()
    try:
        yield followed
    finally:
        await discovery.stop()


@asynccontextmanager
async def worker(store: Store, name: str, lease_s: float, zone: str = "z1") -> AsyncIterator[ServiceProcess]:
    """A real one that stands in the registry, with its address."""
    flags = ("--listen", "127.0.0.1:0", "--engines", "sim", "--name", name, "--zone", zone)
    process = await launch("worker", *flags, "--registry", store.registry, "--lease-s", str(lease_s))
    try:
        (listens,) = await process.logged("worker listens")
        process.address = f"127.0.0.1:{listens['port']}"
        await process.logged("registered")
        yield process
    finally:
        if process.process.returncode is None:
            process.process.send_signal(signal.SIGCONT)  # one that sleeps hears of nothing else
        await process.stop()


async def test_a_worker_is_found_and_leaves_at_once_when_it_is_told_to(
    store: Store, followed: Followed
) -> None:
    async with worker(store, "a", LONG_S) as process:
        await until(lambda: followed.peers)
        assert followed.peers == {process.address: Peer(process.address, zone="z1", name="a")}
        assert await process.stop() == 0
        await until(lambda: followed.left == [process.address])


async def test_a_killed_worker_stands_until_its_lease_runs_out(store: Store, followed: Followed) -> None:
    loop = asyncio.get_running_loop()
    async with worker(store, "a", SHORT_S) as process, worker(store, "b", SHORT_S) as other:
        await until(lambda: len(followed.peers) == 2)
        began = loop.time()
        await process.kill()
        await until(lambda: followed.left)
        assert loop.time() - began > SHORT_S / 2, "it was renewed at most a third of its length before"
        assert followed.left == [process.address]
        assert list(followed.peers) == [other.address], "who renews its lease keeps it"


async def test_a_lease_can_be_given_back_in_the_middle_of_its_renewal(store: Store) -> None:
    """The client loses a cancellation that comes then; every fifth or so of these would never end."""
    for _ in range(50):
        lease = Registration(RegistryRef.parse(store.registry), "h:1", zone="", name="", lease_s=0.003)
        lease.start()
        await lease.leave()
        async with asyncio.timeout(PATIENCE_S):
            await lease.stop()


async def test_two_workers_of_one_name_are_two_workers(store: Store, followed: Followed) -> None:
    async with worker(store, "twin", LONG_S) as one, worker(store, "twin", LONG_S) as other:
        await until(lambda: len(followed.peers) == 2)
        await one.stop()
        await until(lambda: followed.left == [one.address])
        assert list(followed.peers) == [other.address]


async def test_peers_outlive_their_store_and_a_store_that_returns_empty(
    store: Store, followed: Followed
) -> None:
    async with worker(store, "a", SHORT_S) as process:
        await until(lambda: followed.peers)
        with capture_logs() as logs:
            await store.kill()
            await until(lambda: [log for log in logs if log["event"] == AWAY])
            await asyncio.sleep(2 * SHORT_S)  # longer than any lease that was written
            process.process.send_signal(signal.SIGSTOP)
            await store.start()
            await until(lambda: [log for log in logs if log["event"] == "registry can be read again"])
            assert followed.left == [], "the store was empty when it was read"
            process.process.send_signal(signal.SIGCONT)
            await process.logged("registered", 2)
            await asyncio.sleep(2 * SHORT_S)  # an eviction would come with the end of the lease
        assert followed.left == []
        await process.kill()
        await until(lambda: followed.left == [process.address])


async def test_a_worker_that_starts_before_its_store_registers_when_it_comes(
    store: Store, followed: Followed
) -> None:
    await store.kill()
    flags = ("--listen", "127.0.0.1:0", "--engines", "sim", "--lease-s", str(SHORT_S))
    process = await launch("worker", *flags, "--registry", store.registry)
    try:
        await process.logged("registry cannot be written")
        await store.start()
        await process.logged("registered")
        await until(lambda: followed.peers)
    finally:
        await process.stop()


async def test_a_router_finds_its_workers_and_keeps_them_without_the_store(store: Store) -> None:
    scripted = ScriptedWorker("a")
    async with router_between([scripted], named=store.registry) as harness:
        lease = Registration(
            RegistryRef.parse(store.registry), scripted.target, zone="z7", name="a", lease_s=SHORT_S
        )
        lease.start()
        await harness.router.logged("worker connected")
        assert (await harness.views())[scripted.target].info.zone == "z7"
        await store.kill()
        await harness.router.logged(AWAY)
        await asyncio.sleep(2 * SHORT_S)
        assert (await harness.gateway.placed()).endpoint == scripted.target
        await lease.stop()


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (("--registry", "redis://:secret@store:6379/0"), 2, "names no registry"),
        (("--registry", "redis://store:6379/0#workers", "--listen", "0.0.0.0:0"), 1, "--advertise-host"),
    ],
)
async def test_a_registration_that_cannot_work_is_refused(
    flags: tuple[str, ...], code: int, told: str
) -> None:
    process = await launch("worker", *flags)
    assert await process.ended() == code
    said = "\n".join(str(record["event"]) for record in process.log)
    assert told in said
