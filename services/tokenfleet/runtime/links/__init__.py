"""Long-lived duplex streams of protobuf messages between two processes: one small class, one job.

A *link* is what a bidirectional gRPC method is, reduced to what the hot path needs: `send` never blocks and
never awaits, and a handler's plain methods are called with what arrived. It travels in one of two ways.

- over gRPC (`grpc_link`): the contract, always there, what foreign clients use;
- as length-prefixed frames on a plain connection (`frames`): the same messages at about half the CPU time a
  token. The server advertises it in the gRPC call's initial metadata together with a one-time ticket, so that
  the plain connection inherits what the gRPC call was allowed to do. Where the services have certificates,
  this connection is encrypted and both its ends are known, as the call was.

`dial` tries the second and falls back to the first; `LinkServer` offers both.
"""

from tokenfleet.runtime.links.base import Factory, Link, LinkHandler
from tokenfleet.runtime.links.dial import DialError, PeerRefusedError, dial
from tokenfleet.runtime.links.server import LinkServer

__all__ = ["DialError", "Factory", "Link", "LinkHandler", "LinkServer", "PeerRefusedError", "dial"]
