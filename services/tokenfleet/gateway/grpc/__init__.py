"""The gateway's gRPC interface: `tokenfleet.v1.Inference`."""

from tokenfleet.gateway.grpc.server import SERVICE, InferenceServer

__all__ = ["SERVICE", "InferenceServer"]
