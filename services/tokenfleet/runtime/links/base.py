"""The two halves of a link, as its users see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from google.protobuf.message import Message

Sent = TypeVar("Sent", bound=Message)
Received = TypeVar("Received", bound=Message)
Sent_contra = TypeVar("Sent_contra", bound=Message, contravariant=True)
Received_contra = TypeVar("Received_contra", bound=Message, contravariant=True)


class Link(Protocol[Sent_contra]):
    """The sending half. All methods belong to the event loop's thread and return at once."""

    @property
    def peer(self) -> str:
        """Address of the other side, for logs."""

    @property
    def writable(self) -> bool:
        """False while the other side does not keep up; merge what you have and wait for `writable_again`."""

    def send(self, message: Sent_contra) -> None:
        """Queues the message in order; a no-op once the link is closed."""

    def close(self) -> None:
        """Sends what is queued, then closes. `closed` is still called."""

    def abort(self) -> None:
        """Closes without sending what is queued."""


class LinkHandler(Protocol[Received_contra]):
    """The receiving half, called from the event loop."""

    def received(self, messages: Sequence[Received_contra]) -> None:
        """All whole messages that one read brought, in order: more than one means this side fell behind."""

    def writable_again(self) -> None:
        """The other side caught up."""

    def closed(self, cause: str) -> None:
        """The link ended, exactly once; nothing is received after it."""


Factory = Callable[[Link[Sent]], LinkHandler[Received]]
