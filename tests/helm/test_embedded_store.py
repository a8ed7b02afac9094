"""The embedded store's command line, tried on a real Valkey: a flag that it does not know stops it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis.asyncio

from tests.helm.rendering import Object, objects, of_kind
from tokenfleet.cli.local_fleet.store import server_binary

PATIENCE_S = 30


@pytest.mark.parametrize(("name", "appends"), [("cpu", "no"), ("every-branch", "yes")])
async def test_starts_and_keeps_what_it_is_told(name: str, appends: str, tmp_path: Path) -> None:
    async with _running(_command(objects(name), tmp_path), tmp_path) as store:
        await store.set("key", "value")
        assert await store.get("key") == b"value"
        told = await store.config_get("appendonly")
        assert told["appendonly"] == appends


async def test_a_flag_that_it_does_not_know_is_seen(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *_command(objects("cpu"), tmp_path), "--maxmemry", "1mb", stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode != 0
    assert b"maxmemry" in said


def _command(all_: list[Object], folder: Path) -> list[str]:
    """The container's command, with this machine's binary, a folder here and a free port."""
    store = next(one for one in of_kind(all_, "Deployment") if one["metadata"]["name"].endswith("-store"))
    container = store["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["valkey-server"]
    local = "127.0.0.1"
    arguments = {"/data": str(folder), "6379": str(_free_port()), "0.0.0.0": local, "::": local}
    return [str(server_binary()), *(arguments.get(each, each) for each in container["args"])]


@asynccontextmanager
async def _running(command: list[str], folder: Path) -> AsyncIterator[redis.asyncio.Redis]:
    port = int(command[command.index("--port") + 1])
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    client = redis.asyncio.Redis(port=port, socket_timeout=PATIENCE_S)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await _answers(client):
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.02)
        yield client
    finally:
        await client.aclose()
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), PATIENCE_S)


async def _answers(client: redis.asyncio.Redis) -> bool:
    try:
        return bool(await client.ping())
    except (OSError, redis.RedisError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
