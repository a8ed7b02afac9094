"""One server stream of a peer, followed for ever.

Catalogs and workers are watched through streams that outlive every disturbance: when one breaks, its user
learns why at once (what it knew may now be wrong), and the stream is opened again with growing, jittered
pauses, so that a fleet whose peer restarts does not knock all at the same moment. Every attempt has a channel
of its own: gRPC's hidden reconnect pauses would otherwise add to ours, and a peer that is back should be seen
within a second. A channel costs milliseconds and a handful of descriptors though, whether or not anybody is
there, so a peer that was lost is first knocked at with a bare connection: a thousand that are away must not
keep a process busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from tokenfleet.runtime.errors import FleetError, from_rpc_error
from tokenfleet.runtime.grpc_host import open_channel
from tokenfleet.runtime.links import DialError, Link, LinkHandler, take_up
from tokenfleet.runtime.settings import split_address
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.runtime.tls.diagnosis import diagnose
from tokenfleet.v1 import common_pb2

log = get_logger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
KNOCK_PATIENCE_S = 2.0

Item = TypeVar("Item")


class Resubscribe(Exception):
    """Raised by a receiver that has missed something and needs the stream from its beginning."""


@dataclass(slots=True, frozen=True)
class Framed(Generic[Item]):
    """How to have a stream's messages as frames: the call that asks for them, and what reads one."""

    call: Callable[[grpc.aio.Channel], grpc.aio.UnaryStreamCall[Any, Any]]
    parse: Callable[[bytes], Item]


class StreamFollower(Generic[Item]):
    """Calls `received` for each item, `broken` each time the stream ends, until stopped."""

    def __init__(
        self,
        target: str,
        role: str,
        call: Callable[[grpc.aio.Channel], AsyncIterator[Item]],
        received: Callable[[Item], None],
        broken: Callable[[FleetError], None],
        framed: Framed[Item] | None = None,
    ) -> None:
        self._target = target
        self._role = role
        self._call = call
        self._received = received
        self._broken = broken
        self._framed = framed
        self._done_without = False  # the next stream, because frames could not be had
        self._pause_s = FIRST_PAUSE_S
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._follow(), name=f"follow {self._target}")

    async def stop(self) -> None:
        # who restarts it meanwhile has a task of its own, which must not be forgotten at the end of this one
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self) -> None:
        unreachable: FleetError | None = None
        while True:
            self._broken(unreachable or await self._until_broken())
            await asyncio.sleep(self._pause_s * random.uniform(0.8, 1.2))
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
            unreachable = await _knock(self._target)

    async def _until_broken(self) -> FleetError:
        heard = False
        ear = _Ear(self._take)
        try:
            async with open_channel(self._target, self._role) as channel:
                stream = await self._stream(channel, ear)
                if stream is not None:
                    async for item in stream:
                        heard = True
                        self._take(item)
            if stream is None:
                return await ear.until_broken()
        except grpc.aio.AioRpcError as error:
            # who has been heard is trusted, and whoever waits for the news must not wait for a diagnosis
            refusal = "" if heard else await diagnose(self._target, self._role)
            if refusal:
                return FleetError(common_pb2.REASON_UNAUTHENTICATED, refusal)
            return from_rpc_error(error)
        except Exception as error:
            return self._failure(error)
        finally:
            ear.abort()
        return FleetError(common_pb2.REASON_DRAINING, f"{self._target} ended the stream")

    def _failure(self, error: Exception) -> FleetError:
        if isinstance(error, DialError):
            log.warning("no frames to be had, followed over gRPC", target=self._target, error=str(error))
            self._done_without = True
            return FleetError(common_pb2.REASON_WORKER_LOST, str(error))
        if isinstance(error, Resubscribe):
            log.warning("stream opened again", target=self._target, cause=str(error))
            return FleetError(common_pb2.REASON_INTERNAL, str(error))
        # an item that its user cannot take must not end the watching
        log.error("item not taken", target=self._target, exc_info=error)
        return FleetError(common_pb2.REASON_INTERNAL, f"{type(error).__name__}: {error}")

    async def _stream(self, channel: grpc.aio.Channel, ear: _Ear[Item]) -> AsyncIterator[Item] | None:
        """What comes over the channel; None where frames come to the ear, which needs no channel."""
        done_without, self._done_without = self._done_without, False
        if self._framed is None or done_without:
            return self._call(channel)
        call: grpc.aio.UnaryStreamCall[Any, Any] = self._framed.call(channel)
        parse: Callable[[bytes], Any] = self._framed.parse
        link: Link[Any] | None = await take_up(call, self._target, self._role, parse, ear.listen)
        return call.__aiter__() if link is None else None

    def _take(self, item: Item) -> None:
        self._pause_s = FIRST_PAUSE_S
        self._received(item)


class _Ear(Generic[Item]):
    """The end of a link at which a stream's items arrive."""

    def __init__(self, take: Callable[[Item], None]) -> None:
        self._take = take
        self._link: Link[Any] | None = None
        self._end: asyncio.Future[FleetError] = asyncio.get_running_loop().create_future()

    def listen(self, link: Link[Any]) -> LinkHandler[Any]:
        self._link = link
        return self

    async def until_broken(self) -> FleetError:
        """Why the stream ended. Raises what the taker of an item raised."""
        return await self._end

    def abort(self) -> None:
        self._end.cancel()
        if self._link is not None:
            self._link.abort()

    def received(self, messages: Sequence[Item]) -> None:
        try:
            for message in messages:
                if self._end.done():
                    return
                self._take(message)
        except Exception as error:
            self._end.set_exception(error)

    def writable_again(self) -> None: ...

    def closed(self, cause: str) -> None:
        if not self._end.done():
            self._end.set_result(FleetError(common_pb2.REASON_WORKER_LOST, cause))


async def _knock(target: str) -> FleetError | None:
    """Why nobody is there; None when somebody is."""
    try:
        async with asyncio.timeout(KNOCK_PATIENCE_S):
            _, writer = await asyncio.open_connection(*split_address(target))
    except (OSError, TimeoutError) as error:
        cause = str(error) or f"no answer within {KNOCK_PATIENCE_S:g} s"
        return FleetError(common_pb2.REASON_WORKER_LOST, f"cannot reach {target}: {cause}")
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None
