"""The engine host: takes sequences from gateways, runs them on an engine, sends back ids and text."""

import os

# Engines are started as new programs, which need none of gRPC's preparations for a fork, nor its remarks.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
