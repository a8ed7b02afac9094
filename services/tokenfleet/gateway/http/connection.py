"""uvicorn's connection, told to let the token path through.

Tokens are produced by the step handler, not by the coroutine that serves the request, and are written to the
transport from there. For that the request needs its connection, and must hear when the client left or can be
written to again: ASGI's `receive` would cost a task for each stream.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from tokenfleet.gateway.http.alarm import Alarm
from tokenfleet.gateway.http.guard import GuardedProtocol, Rules


class Watcher(Protocol):
    """What a request wants to hear of its connection."""

    def gone(self) -> None:
        """The client closed the connection."""

    def paused(self) -> None:
        """The client does not read; what is written now only takes up memory."""

    def writable(self) -> None:
        """The client read enough; writing may go on."""


class Connection(GuardedProtocol):
    """One client connection; at most one request of it is being answered at a time."""

    transport: asyncio.Transport
    watcher: Watcher | None = None
    # Of the request that is being answered:
    deadline: Alarm
    waking: Alarm  # when its headers go although nothing is decided

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadline, self.waking = Alarm(self.loop), Alarm(self.loop)

    @property
    def write_paused(self) -> bool:
        return self.flow.write_paused

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.watcher is not None:
            self.watcher.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.watcher is not None:
            self.watcher.writable()

    def cut_off(self) -> None:
        self.deadline.stop()
        self.waking.stop()
        if self.watcher is not None:
            self.watcher.gone()


def connection_class(rules: Rules) -> type[Connection]:
    """Connections of a server with these rules; uvicorn makes one for each client."""
    return type("RuledConnection", (Connection,), {"rules": rules})
