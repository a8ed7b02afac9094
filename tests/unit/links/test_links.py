"""Both ways of a link behave alike: order, several messages a read, back-pressure, ends on either side."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tests.unit.links.worker_server import served
from tokenfleet.runtime.links import DialError, Link, LinkServer, dial
from tokenfleet.runtime.links.frames import FrameLink, frame
from tokenfleet.v1 import worker_pb2, worker_pb2_grpc

METHOD = "/tokenfleet.v1.Worker/Serve"


class Recorder:
    """Keeps what arrives; echoes each cancel's slot back when `echo` is set."""

    def __init__(self, link: Link[Any], echo: bool = False) -> None:
        self.link = link
        self.echo = echo
        self.messages: list[Any] = []
        self.arrived = asyncio.Condition()
        self.ended = asyncio.Event()
        self.cause = ""

    def received(self, messages: Sequence[Any]) -> None:
        self.messages.extend(messages)
        if self.echo:
            for message in messages:
                slots = [cancel.slot for cancel in message.cancels]
                self.link.send(worker_pb2.ServeResponse(step=worker_pb2.StepOutputs(slots=slots)))

    def writable_again(self) -> None:
        pass

    def closed(self, cause: str) -> None:
        assert not self.ended.is_set(), "closed must be called once"
        self.cause = cause
        self.ended.set()


class Echo(worker_pb2_grpc.WorkerServicer):
    def __init__(self, links: LinkServer) -> None:
        self.links = links
        self.sessions: list[Recorder] = []

    def accept(self, link: Link[Any]) -> Recorder:
        session = Recorder(link, echo=True)
        self.sessions.append(session)
        return session

    async def Serve(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await self.links.serve(request_iterator, context, worker_pb2.ServeRequest.FromString, self.accept)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, Echo]]:
    links = LinkServer()
    echo = Echo(links)  # type: ignore[abstract]
    async with served(echo, links) as target:
        yield target, echo


async def connect(target: str, frames: bool) -> Recorder:
    made: list[Recorder] = []

    def accept(link: Link[Any]) -> Recorder:
        made.append(Recorder(link))
        return made[0]

    await dial(
        target,
        METHOD,
        worker_pb2.ServeRequest,
        worker_pb2.ServeResponse.FromString,
        accept,
        frames=frames,
    )
    return made[0]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def step_of(slots: int) -> worker_pb2.ServeResponse:
    return worker_pb2.ServeResponse(step=worker_pb2.StepOutputs(slots=range(slots)))


def cancel(slot: int) -> worker_pb2.ServeRequest:
    return worker_pb2.ServeRequest(cancels=[worker_pb2.Cancel(slot=slot)])


@pytest.mark.parametrize("frames", [True, False], ids=["frames", "grpc"])
async def test_messages_arrive_in_order_both_ways(frames: bool) -> None:
    async with serving() as (target, _):
        client = await connect(target, frames)
        assert isinstance(client.link, FrameLink) is frames
        for slot in range(500):
            client.link.send(cancel(slot))
        await until(lambda: len(client.messages) == 500)
        assert [message.step.slots[0] for message in client.messages] == list(range(500))
        client.link.close()
        async with asyncio.timeout(5):
            await client.ended.wait()


@pytest.mark.parametrize("frames", [True, False], ids=["frames", "grpc"])
async def test_each_side_learns_that_the_other_went(frames: bool) -> None:
    async with serving() as (target, echo):
        first, second = await connect(target, frames), await connect(target, frames)
        await until(lambda: len(echo.sessions) == 2)
        first.link.abort()
        async with asyncio.timeout(5):
            await echo.sessions[0].ended.wait()
            echo.sessions[1].link.abort()
            await second.ended.wait()
        assert second.cause


async def test_stopping_waits_until_what_was_queued_has_left() -> None:
    async with serving() as (target, echo):
        client = await connect(target, frames=True)
        await until(lambda: echo.sessions)
        client.link._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(16):
            echo.sessions[0].link.send(step_of(300_000))
        stopping = asyncio.create_task(echo.links.stop())
        await until(lambda: echo.links.stopping)
        assert not stopping.done(), "the peer has not read it yet"
        client.link._transport.resume_reading()  # type: ignore[attr-defined]
        await stopping
        await client.ended.wait()
        assert len(client.messages) == 16


async def test_stopping_gives_up_on_a_peer_that_does_not_read() -> None:
    async with serving() as (target, echo):
        client = await connect(target, frames=True)
        await until(lambda: echo.sessions)
        client.link._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(16):
            echo.sessions[0].link.send(step_of(300_000))
        await echo.links.stop(patience_s=0.05)
        await echo.sessions[0].ended.wait()
        client.link.abort()


@pytest.mark.parametrize("frames", [True, False], ids=["frames", "grpc"])
async def test_a_large_message_arrives_whole(frames: bool) -> None:
    async with serving() as (target, echo):
        client = await connect(target, frames)
        ids = list(range(300_000))
        client.link.send(worker_pb2.ServeRequest(submits=[worker_pb2.Submit(token_ids=ids)]))
        client.link.send(cancel(7))
        await until(lambda: client.messages and list(client.messages[-1].step.slots) == [7])
        assert list(echo.sessions[0].messages[0].submits[0].token_ids) == ids
        client.link.abort()


async def test_nobody_listening_is_a_dial_error_that_names_the_target() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DialError, match=target):
            await connect(target, True)


@pytest.mark.parametrize("opening", [frame(b"0" * 32), b"GET / HTTP/1.1\r\nHost: x\r\n" + b"x" * 64])
async def test_a_connection_without_a_ticket_is_closed(opening: bytes) -> None:
    async with serving() as (_, echo):
        reader, writer = await asyncio.open_connection("127.0.0.1", echo.links.port)
        writer.write(opening)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(5):
                await reader.readexactly(1)
        writer.close()
        assert not echo.sessions


async def test_a_ticket_is_good_once() -> None:
    async with serving() as (target, echo):
        async with grpc.aio.insecure_channel(target) as channel:
            call: grpc.aio.StreamStreamCall[Any, Any] = channel.stream_stream(METHOD)(
                metadata=(("tokenfleet-accept-frames", "1"),)
            )
            metadata = {str(key): value for key, value in await call.initial_metadata() or ()}
            call.cancel()
        ticket = str(metadata["tokenfleet-frames-ticket"]).encode()
        _, good = await asyncio.open_connection("127.0.0.1", echo.links.port)
        good.write(frame(ticket))
        await until(lambda: len(echo.sessions) == 1)
        reader, bad = await asyncio.open_connection("127.0.0.1", echo.links.port)
        bad.write(frame(ticket))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(5):
                await reader.readexactly(1)
        good.close()
        bad.close()
        assert len(echo.sessions) == 1


@pytest.mark.parametrize("size", [1, 3, 4, 5, 64, 10_000])
def test_frames_cut_anywhere_give_the_same_messages(size: int) -> None:
    seen: list[worker_pb2.ServeRequest] = []

    class Sink:
        def received(self, messages: Sequence[worker_pb2.ServeRequest]) -> None:
            seen.extend(messages)

        def writable_again(self) -> None: ...

        def closed(self, cause: str) -> None: ...

    link: FrameLink[Any, worker_pb2.ServeRequest] = FrameLink(
        worker_pb2.ServeRequest.FromString, lambda _: Sink()
    )
    link._handler = Sink()
    sent = [cancel(slot) for slot in range(1, 200)]
    stream = b"".join(frame(message.SerializeToString()) + frame(b"") for message in sent)
    for start in range(0, len(stream), size):
        link.data_received(stream[start : start + size])
    assert seen == sent
