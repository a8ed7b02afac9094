"""Engines that live in a child process of the worker, whose death is not the worker's.

What every such engine needs, so that its own module only says how it is configured and stepped. On the
worker's side:

- `process`  starts the child, watches it, explains its death, measures and ends it with all its descendants
- `lives`    starts it again when it died, with back-off
- `channel`  messages to and from it, as frames on a socket pair
- `engine`   the `Engine` built on these: submits and aborts up, one message per engine step down

On the child's side, where alone the engine's own libraries may be imported:

- `child`    the child's main program: configuration in, readiness or a typed error out, gone with the worker
- `stepping` the loop that steps the engine and reports each step

A child that speaks another language than these frames (llama.cpp's server) uses `process` and `lives` alone.
"""
