"""The calling side: opens the gRPC call, moves to plain frames where the server offers them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from tokenfleet.runtime.grpc_host import open_channel
from tokenfleet.runtime.links.base import Factory, Link, Received, Sent
from tokenfleet.runtime.links.frames import FrameLink
from tokenfleet.runtime.links.grpc_link import GrpcLink
from tokenfleet.runtime.links.server import ACCEPT_KEY, ADDRESS_KEY, TICKET_KEY
from tokenfleet.runtime.roles import role_of
from tokenfleet.runtime.settings import split_address
from tokenfleet.runtime.tls import own_identity
from tokenfleet.runtime.tls.diagnosis import diagnose

CONNECT_TIMEOUT_S = 3.0
# Metadata of a call that would rather have frames.
ACCEPT = ((ACCEPT_KEY, "1"),)

_running: set[asyncio.Task[None]] = set()


class DialError(Exception):
    """The peer cannot be reached, or does not answer in time."""


class PeerRefusedError(DialError):
    """The peer can be reached, but one side does not trust the other."""


async def dial(
    target: str,
    method: str,
    request: type[Sent],
    parse: Callable[[bytes], Received],
    factory: Factory[Sent, Received],
    *,
    frames: bool = True,
) -> Link[Sent]:
    """A link to `method` (`/tokenfleet.v1.Worker/Serve`) of the server at `target` (host:port).

    `factory` is called with the link before anything is received. Raises DialError.
    """
    role = role_of(method)
    channel = open_channel(target, role)
    metadata = ACCEPT if frames else ()
    call = channel.stream_stream(
        method, request_serializer=request.SerializeToString, response_deserializer=parse
    )(metadata=metadata)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            answered = await _answer(call)
            if TICKET_KEY not in answered:
                return _over_grpc(target, channel, call, factory)
            framed = await _connect(answered, target, role, parse, factory)
    except asyncio.CancelledError:
        await _give_up(call, channel)
        raise
    except (TimeoutError, OSError, grpc.aio.AioRpcError) as error:
        failure = _describe(error)
    else:
        await channel.close()
        return framed
    await _give_up(call, channel)
    # gRPC goes on connecting, closed or not, while anybody holds the call, as an error's frames would
    del call, channel
    refusal = await diagnose(target, role)
    if refusal:
        raise PeerRefusedError(f"{target}: {refusal}")
    raise DialError(f"{target}: {failure}")


async def take_up(
    call: grpc.aio.UnaryStreamCall[Any, Received],
    target: str,
    role: str,
    parse: Callable[[bytes], Received],
    factory: Factory[Sent, Received],
) -> Link[Sent] | None:
    """A link on which the call's messages come instead, where the server offers one to this call, which was
    made with `ACCEPT`; otherwise the call itself has them, or what is wrong with it. Raises DialError when
    nothing is to be had where the server says that it is."""
    try:
        answered = await _answer(call)
    except ConnectionError:
        return None
    if TICKET_KEY not in answered:
        return None
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return await _connect(answered, target, role, parse, factory)
    except (TimeoutError, OSError) as error:
        raise DialError(f"{target}: frames at {answered[ADDRESS_KEY]!s}: {_describe(error)}") from error


async def _give_up(call: grpc.aio.StreamStreamCall[Sent, Received], channel: grpc.aio.Channel) -> None:
    call.cancel()
    await channel.close()


def _over_grpc(
    target: str,
    channel: grpc.aio.Channel,
    call: grpc.aio.StreamStreamCall[Sent, Received],
    factory: Factory[Sent, Received],
) -> Link[Sent]:
    link: GrpcLink[Sent, Received] = GrpcLink(target, call.write)
    handler = factory(link)

    async def carry() -> None:
        try:
            await link.run(call.__aiter__(), lambda _: handler)
        finally:
            call.cancel()
            await channel.close()

    task = asyncio.create_task(carry())
    _running.add(task)
    task.add_done_callback(_running.discard)
    return link


async def _answer(call: grpc.aio.Call) -> dict[str, str | bytes]:
    """What the server told before its first message. Raises ConnectionError when the call failed.

    A call that has ended may show empty initial metadata, since grpc.aio sometimes sees the end of a short
    call first; then the trailing metadata tell.
    """
    metadata = await call.initial_metadata() or ()
    if not len(metadata) and call.done():
        if await call.code() is not grpc.StatusCode.OK:
            raise ConnectionError(f"{(await call.code()).name}: {await call.details()}")
        metadata = await call.trailing_metadata() or ()
    return {str(key): value for key, value in metadata}


async def _connect(
    answered: Mapping[str, str | bytes],
    target: str,
    role: str,
    parse: Callable[[bytes], Received],
    factory: Factory[Sent, Received],
) -> FrameLink[Sent, Received]:
    """To where the server said that it has frames for the ticket that it gave."""
    ticket = str(answered[TICKET_KEY]).encode()
    link: FrameLink[Sent, Received] = FrameLink(parse, factory, preamble=ticket)
    host, port = split_address(str(answered[ADDRESS_KEY]))
    identity = own_identity()
    await asyncio.get_running_loop().create_connection(
        lambda: link,
        host or split_address(target)[0],
        port,
        ssl=identity.client_context if identity else None,
        server_hostname=identity.name_of(role) if identity else None,
    )
    return link


def _describe(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or "no answer in time"
