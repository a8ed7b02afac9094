"""A link to a peer that is gone: its address answers nothing at all, as that of a pod which has ended."""

import asyncio
import gc
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tokenfleet.gateway.persistent_link import PersistentLink
from tokenfleet.v1 import tokenizer_pb2

PATIENCE_S = 20
# Longer than gRPC's first pauses between two attempts.
QUIET_S = 1.5

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses")


@contextmanager
def silent_address() -> Iterator[str]:
    """A port whose backlog is full, so that the kernel drops what knocks."""
    with socket.socket() as listener, socket.socket() as filling:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        filling.connect(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """As in a gateway, which collects so seldom that what has to wait for it is as good as leaked."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def connecting(target: str) -> bool:
    """Whether gRPC, whose connections are this process's, knocks there."""
    port = int(target.rpartition(":")[2])
    ours = psutil.Process().net_connections("tcp")
    return any(each.status == psutil.CONN_SYN_SENT and each.raddr.port == port for each in ours)


def link_to(target: str) -> PersistentLink[tokenizer_pb2.EncodeRequest, tokenizer_pb2.EncodeResponse]:
    def nothing(*_: object) -> None: ...

    return PersistentLink(
        target,
        "/tokenfleet.v1.Tokenizer/Encode",
        tokenizer_pb2.EncodeRequest,
        tokenizer_pb2.EncodeResponse.FromString,
        on_received=nothing,
        on_up=nothing,
        on_down=nothing,
    )


async def test_nobody_knocks_any_more_once_it_is_stopped() -> None:
    loop = asyncio.get_running_loop()
    with silent_address() as target, no_garbage_collection():
        link = link_to(target)
        link.start()
        async with asyncio.timeout(PATIENCE_S):
            while not connecting(target):
                await asyncio.sleep(0.02)
        await link.stop()
        async with asyncio.timeout(PATIENCE_S):
            quiet_since = loop.time()
            while loop.time() - quiet_since < QUIET_S:
                await asyncio.sleep(0.02)
                if connecting(target):
                    quiet_since = loop.time()
