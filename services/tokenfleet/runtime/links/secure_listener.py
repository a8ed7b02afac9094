"""Accepts connections of peers with certificates, and says why it refuses others.

asyncio's own servers end a failed handshake without a word, and keep for ever the context that they were
given. Here each connection is shaken hands with by the certificate of that moment.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from tokenfleet.runtime.telemetry import get_logger

BACKLOG = 512
HANDSHAKE_S = 10.0
# Without file descriptors, for example, accepting fails at once and again.
PAUSE_S = 0.1

log = get_logger(__name__)


class SecureListener:
    """Listens on an address (host, port); port 0 means a free one."""

    def __init__(
        self,
        address: tuple[str, int],
        context: Callable[[], ssl.SSLContext],
        protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        """Raises OSError when the address is taken."""
        self._context = context
        self._protocol = protocol
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._socket = socket.create_server(address, family=family, backlog=BACKLOG)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._admitting: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept(), name="accept frames")

    def close(self) -> None:
        """Takes no more; connections that are open are not its business any more."""
        self._accepting.cancel()
        for admitting in self._admitting:
            admitting.cancel()
        self._socket.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self._socket)
            except OSError as error:
                log.error("cannot accept connections", error=str(error))
                await asyncio.sleep(PAUSE_S)
                continue
            task = loop.create_task(self._admit(connection, address))
            self._admitting.add(task)
            task.add_done_callback(self._admitting.discard)

    async def _admit(self, connection: socket.socket, address: tuple[object, ...]) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, connection, ssl=self._context(), ssl_handshake_timeout=HANDSHAKE_S
            )
        except OSError as error:  # a handshake's failures among them
            cause = getattr(error, "verify_message", None) or getattr(error, "reason", None) or str(error)
            log.warning("peer refused", peer=f"{address[0]}:{address[1]}", cause=cause or "it hung up")
            connection.close()
