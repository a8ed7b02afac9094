"""An engine server that somebody else runs, in a vendor's own container beside the worker.

The server speaks the gRPC protocol that the package `smg-grpc-proto` publishes; the worker attaches to it,
loads nothing, and owns nothing of it but the sequences that it sends. Token ids go there and come back, so
text, stop strings and everything else stay what they are with an engine of the worker's own.

- `arguments`  what a catalog entry says of the server
- `server`     the connection: readiness, calls, and noticing that it is gone
- `dialects`   vLLM's and TensorRT-LLM's words for the same things, one module each
- `cache_feed` the server's KV-cache events, followed over gaps and reconnects
- `load`       how busy the server is
- `sequence`   one running generation
- `engine`     the `Engine` that puts these together
"""
