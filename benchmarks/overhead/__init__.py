"""What the fleet costs an engine: the same load through a fleet of one worker and on the engine's own server.

Both serve the same weights with the same settings and one thread, and each on the same cores: whoever
computes the model has one core, and everything else (HTTP, gateway, tokenizer, router, loader, the worker's
own process, the load generator) shares the other. Windows alternate between the two, so that what else the
machine does hits both; the ratio is that of neighbours, and the median of these.
"""
