"""The calling side: opens the gRPC call, moves to plain frames where the server offers them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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
    metadata = ((ACCEPT_KEY, "1"),) if frames else ()
    call = channel.stream_stream(
        method, request_serializer=request.SerializeToString, response_deserializer=parse
    )(metadata=metadata)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            answered = await _answer(call)
            ticket = answered.get(TICKET_KEY)
            if ticket is None:
                return _over_grpc(target, channel, call, factory)
            framed: FrameLink[Sent, Received] = FrameLink(parse, factory, preamble=str(ticket).encode())
            await _connect(framed, target, str(answered[ADDRESS_KEY]), role)
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


async def _answer(call: grpc.aio.StreamStreamCall[Sent, Received]) -> dict[str, str | bytes]:
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


async def _connect(link: FrameLink[Sent, Received], target: str, address: str, role: str) -> None:
    host, port = split_address(address)
    identity = own_identity()
    await asyncio.get_running_loop().create_connection(
        lambda: link,
        host or split_address(target)[0],
        port,
        ssl=identity.client_context if identity else None,
        server_hostname=identity.name_of(role) if identity else None,
    )


def _describe(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or "no answer in time"
