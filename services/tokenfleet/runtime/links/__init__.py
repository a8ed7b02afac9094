"""Long-lived duplex streams of protobuf messages between two processes: one small class, one job.

A *link* is what a bidirectional gRPC method is, reduced to what the hot path needs: `send` never blocks and
never awaits, and a handler's plain methods are called with what arrived. It travels in one of two ways.

- over gRPC (`grpc_link`): the contract, always there, what foreign clients use;
- as length-prefixed frames on a plain connection (`frames`): the same messages at about half the CPU time a
  token. The server advertises it in the gRPC call's initial metadata together with a one-time ticket, so that
  the plain connection inherits what the gRPC call was allowed to do. Where the services have certificates,
  this connection is encrypted and both its ends are known, as the call was.

`dial` tries the second and falls back to the first; `LinkServer` offers both. A server's stream that somebody
follows can travel in the second way, too: `LinkServer.offer` and `Feed` on its side, `take_up` on the other.
"""

from tokenfleet.runtime.links.base import Factory, Link, LinkHandler
from tokenfleet.runtime.links.dial import ACCEPT, DialError, PeerRefusedError, dial, take_up
from tokenfleet.runtime.links.feed import Feed
from tokenfleet.runtime.links.server import LinkServer

__all__ = [
    "ACCEPT",
    "DialError",
    "Factory",
    "Feed",
    "Link",
    "LinkHandler",
    "LinkServer",
    "PeerRefusedError",
    "dial",
    "take_up",
]
