"""The serving side: one listener for plain frames beside the gRPC server, and tickets between them.

A client that wants frames says so in the gRPC call's metadata. The call, which may be authenticated and
encrypted, answers with the address and a ticket that is good once and for ten seconds, and ends. The plain
connection opens with the ticket; one without a valid ticket is closed unread.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, cast

import grpc

from tokenfleet.runtime.lifecycle import StartupError
from tokenfleet.runtime.links.base import Factory, Received, Sent
from tokenfleet.runtime.links.frames import FrameLink
from tokenfleet.runtime.links.grpc_link import GrpcLink
from tokenfleet.runtime.links.secure_listener import SecureListener
from tokenfleet.runtime.settings import split_address
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.runtime.tls import own_identity

ACCEPT_KEY = "tokenfleet-accept-frames"
ADDRESS_KEY = "tokenfleet-frames-address"
TICKET_KEY = "tokenfleet-frames-ticket"
TICKET_BYTES = 32
TICKET_LIFE_S = 10.0
# Time for the last messages to leave once everything was closed.
CLOSING_S = 5.0

log = get_logger(__name__)


@dataclass(slots=True)
class _Admission:
    parse: Callable[[bytes], Any]
    factory: Factory[Any, Any]
    expiry: asyncio.TimerHandle


class LinkServer:
    """Serves links over gRPC calls and, when started with an address, as frames."""

    def __init__(self, advertise_host: str = "") -> None:
        self._advertise_host = advertise_host
        self._tickets: dict[bytes, _Admission] = {}
        self._server: asyncio.Server | SecureListener | None = None
        self.connections: set[_Doorkeeper] = set()
        self._emptied = asyncio.Event()
        self.stopping = False
        self.port = 0

    async def start_frames(self, listen: str, port: int = 0) -> int:
        """Listens for frames on the host of `listen`; answers the port. Raises StartupError if taken."""
        host, _ = split_address(listen)
        identity = own_identity()
        try:
            if identity is not None:
                listener = SecureListener((host, port), lambda: identity.server_context, self._welcome)
                self._server, self.port = listener, listener.port
            else:
                server = await asyncio.get_running_loop().create_server(
                    self._welcome, host, port, backlog=512
                )
                self._server, self.port = server, server.sockets[0].getsockname()[1]
        except OSError as error:
            raise StartupError(
                f"cannot listen for frames on {host}:{port}: {error.strerror}. "
                "Free the port, or choose another with --frames-port"
            ) from error
        return self.port

    def _welcome(self) -> _Doorkeeper:
        return _Doorkeeper(self)

    async def stop(self, patience_s: float = CLOSING_S) -> None:
        """Closes every frame connection and waits until what was queued on it has left, or patience ends.

        Without the wait a process that ends right after takes the last results of a busy peer with it.
        """
        self.stopping = True
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.connections):
            connection.drop()
        if not self.connections:
            return
        try:
            async with asyncio.timeout(patience_s):
                self._emptied.clear()
                await self._emptied.wait()
        except TimeoutError:
            log.warning("closed links whose peers did not read", links=len(self.connections))
            for connection in tuple(self.connections):
                connection.abort()

    def forget(self, connection: _Doorkeeper) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._emptied.set()

    async def serve(
        self,
        arriving: AsyncIterator[Received],
        context: grpc.aio.ServicerContext[Received, Sent],
        parse: Callable[[bytes], Received],
        factory: Factory[Sent, Received],
    ) -> None:
        """The body of a bidirectional gRPC method: hands the caller a ticket, or carries the link itself."""
        if not await self.offer(context, parse, factory):
            await context.send_initial_metadata(())
            link: GrpcLink[Sent, Received] = GrpcLink(context.peer(), context.write)
            await link.run(arriving, factory)

    async def offer(
        self,
        context: grpc.aio.ServicerContext[Any, Any],
        parse: Callable[[bytes], Received],
        factory: Factory[Sent, Received],
    ) -> bool:
        """Hands a ticket to a caller that wants one; then there is nothing left for the call to do."""
        wants_frames = any(key == ACCEPT_KEY for key, _ in context.invocation_metadata() or ())
        if not wants_frames or self._server is None:
            return False
        address = f"{self._advertise_host}:{self.port}"
        answer = ((ADDRESS_KEY, address), (TICKET_KEY, self._issue(parse, factory)))
        # twice, since a client that sees the end of the call first shows no initial metadata
        context.set_trailing_metadata(answer)
        await context.send_initial_metadata(answer)
        return True

    def _issue(self, parse: Callable[[bytes], Any], factory: Factory[Any, Any]) -> str:
        ticket = secrets.token_hex(TICKET_BYTES // 2)
        key = ticket.encode()
        expiry = asyncio.get_running_loop().call_later(TICKET_LIFE_S, self._tickets.pop, key, None)
        self._tickets[key] = _Admission(parse, factory, expiry)
        return ticket

    def admit(self, ticket: bytes) -> _Admission | None:
        admission = self._tickets.pop(ticket, None)
        if admission is not None:
            admission.expiry.cancel()
        return admission


class _Doorkeeper(asyncio.Protocol):
    """Reads the ticket, then becomes the link: later events go to the `FrameLink` behind it."""

    def __init__(self, server: LinkServer) -> None:
        self._server = server
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._link: FrameLink[Any, Any] | None = None
        self._patience: asyncio.TimerHandle | None = None

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        self._patience = asyncio.get_running_loop().call_later(TICKET_LIFE_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._received += data
        if len(self._received) < 4 + TICKET_BYTES:
            return
        ticket, rest = self._received[4 : 4 + TICKET_BYTES], self._received[4 + TICKET_BYTES :]
        admission = self._server.admit(ticket)
        if admission is None:
            self._transport.abort()
            return
        if self._patience is not None:
            self._patience.cancel()
        self._link = FrameLink(admission.parse, admission.factory)
        self._transport.set_protocol(self._link)
        self._link.on_lost = self._forget
        self._link.connection_made(self._transport)
        if rest:
            self._link.data_received(rest)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._patience is not None:
            self._patience.cancel()
        self._forget()

    def _forget(self) -> None:
        self._server.forget(self)
