"""What comparable programs cost, for the plots.

Measured once on the same kind of machine (2 cores, Debian 12) under the same conditions: one core each,
64-token streams, a load generator and backends in C. They give an idea of the order; the ratio to the bare
server, measured in the same run, is what can be compared between machines.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "peers: measured once on the same kind of machine"


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    us_per_token_256: float
    us_per_token_1000: float
    us_per_request: float


PEERS = (
    Peer("nginx", 23.5, 24.5, 43),
    Peer("envoy 1.40", 32.7, 37.3, 99),
    Peer("vllm-router 0.1.17, round robin", 33.4, 34.2, 115),
    Peer("smg 1.13.0, cache_aware", 36.4, 35.0, 323),
    Peer("Dynamo 1.6.1 frontend + KV router", 39.7, 31.9, 841),
)
