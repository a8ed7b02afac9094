"""llama.cpp through xllamacpp, in a child process of the worker.

- `child`     the child's main program: llama.cpp's own server on a Unix socket, gone when the worker goes
- `process`   starts, watches and ends the child
- `stream`    one streamed completion over that socket
- `request`   sampling parameters in llama.cpp's words
- `recovery`  the ids that llama.cpp does not tell
- `step_clock`  engine steps, recognised from single tokens
- `scheduler` which sequences fit into the slots and the shared KV cache
- `engine`    the `Engine` that puts these together
"""
