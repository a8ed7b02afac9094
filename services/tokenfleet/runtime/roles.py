"""The services by name: in logs, on command lines, and in certificates."""

from __future__ import annotations

GATEWAY = "gateway"
TOKENIZER = "tokenizer"
ROUTER = "router"
MODEL_LOADER = "model-loader"
WORKER = "worker"

_BY_SERVICE = {
    "tokenfleet.v1.Inference": GATEWAY,
    "tokenfleet.v1.Tokenizer": TOKENIZER,
    "tokenfleet.v1.Router": ROUTER,
    "tokenfleet.v1.ModelLoader": MODEL_LOADER,
    "tokenfleet.v1.Worker": WORKER,
}


def role_of(method: str) -> str:
    """Who serves a gRPC method: `worker` for `/tokenfleet.v1.Worker/Serve`."""
    return _BY_SERVICE[method.split("/")[1]]
