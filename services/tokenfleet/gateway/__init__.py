"""The gateway: the only service that clients talk to; it owns their streams and their deadlines."""
