"""The client SDK: a fleet from Python, with or without asyncio, over gRPC.

    from tokenfleet.client import FleetClient

    with FleetClient("127.0.0.1:8081") as fleet:
        for delta in fleet.chat("smollm2-135m-instruct", "What is the capital of France?"):
            print(delta.text, end="", flush=True)

Needs nothing but the bare `pip install tokenfleet`.
"""

from tokenfleet.client.answers import Answer, Choice, Delta, Loading, Model, TokenCount, Usage
from tokenfleet.client.async_client import AsyncDeltaStream, AsyncFleetClient
from tokenfleet.client.connection import Tls
from tokenfleet.client.errors import (
    Cancelled,
    ContextTooLong,
    DeadlineExceeded,
    FleetError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    ReadTooSlowly,
    ServerError,
    StreamBroken,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from tokenfleet.client.requests import GenerationOptions, Message
from tokenfleet.client.sync_client import DeltaStream, FleetClient

__all__ = [
    "Answer",
    "AsyncDeltaStream",
    "AsyncFleetClient",
    "Cancelled",
    "Choice",
    "ContextTooLong",
    "DeadlineExceeded",
    "Delta",
    "DeltaStream",
    "FleetClient",
    "FleetError",
    "GenerationOptions",
    "InvalidRequest",
    "Loading",
    "Message",
    "Model",
    "ModelNotFound",
    "Overloaded",
    "PermissionDenied",
    "ReadTooSlowly",
    "ServerError",
    "StreamBroken",
    "Tls",
    "TokenCount",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "Usage",
]
