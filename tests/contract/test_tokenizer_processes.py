"""Several processes behind one port, and what ties them to their parent."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from tests import tiny_model
from tests.contract.tokenizer_process import TokenizerProcess, gateway, serving_loader, tokenizer_process
from tokenfleet.v1 import common_pb2, tokenizer_pb2

COUNT = 2


@asynccontextmanager
async def processes(folder: Path) -> AsyncIterator[TokenizerProcess]:
    source = f"file://{tiny_model.write_gguf(folder / 'model.gguf')}"
    spec = common_pb2.ModelSpec(name="tiny", source=source, block_size=4)
    async with serving_loader([spec]) as (_, address):
        flags = ("--cache-dir", str(folder / "cache"), "--processes", str(COUNT))
        async with tokenizer_process(address, *flags) as parent:
            await parent.logged("ready", COUNT)
            yield parent


def children(parent: TokenizerProcess) -> list[psutil.Process]:
    return psutil.Process(parent.process.pid).children()


async def ended(process: psutil.Process) -> None:
    await asyncio.to_thread(process.wait, 20)


async def encode(address: str) -> int:
    async with gateway(address, frames=True) as link:
        return (await link.one(tokenizer_pb2.EncodeJob(model="tiny", text="hello"))).token_count


async def test_all_serve_on_one_port(tmp_path: Path) -> None:
    async with processes(tmp_path) as parent:
        assert len({record["grpc"] for record in await parent.logged("serving", COUNT)}) == 1
        assert await asyncio.gather(*(encode(parent.address) for _ in range(8))) == [1] * 8


async def test_one_that_dies_is_replaced(tmp_path: Path) -> None:
    async with processes(tmp_path) as parent:
        killed = children(parent)[0]
        killed.kill()
        await parent.logged("ready", COUNT + 1)
        (died,) = await parent.logged("process died")
        assert died["exit_code"] == -signal.SIGKILL
        alive = children(parent)
        assert len(alive) == COUNT
        assert killed not in alive
        assert await encode(parent.address) == 1


async def test_a_signal_to_the_parent_stops_all_in_order(tmp_path: Path) -> None:
    async with processes(tmp_path) as parent:
        all_of_them = children(parent)
        assert await parent.stop() == 0
        assert not [child for child in all_of_them if child.is_running()]
        assert len(await parent.logged("stopping", COUNT + 1)) == COUNT + 1


async def test_a_signal_to_all_of_them_is_no_second_signal(tmp_path: Path) -> None:
    """As a terminal's Ctrl-C sends it: a second one would end them without any order."""
    async with processes(tmp_path) as parent:
        for child in children(parent):
            child.send_signal(signal.SIGINT)
        parent.process.send_signal(signal.SIGINT)
        assert await parent.process.wait() == 0
        assert not [record for record in parent.log if record["event"] == "stopped at once"]


async def test_no_child_outlives_its_parent(tmp_path: Path) -> None:
    async with processes(tmp_path) as parent:
        orphans = children(parent)
        parent.process.kill()
        await asyncio.gather(*(ended(orphan) for orphan in orphans))
