"""TensorRT-LLM through its LLM API, in a child process of the worker.

- `arguments`  what a catalog entry may say about it, in its own names
- `request`    a sequence in its words
- `engine`     the `Engine`: what the child is told, and what becomes of what it says
- `child`      the child's main program; the only place, with `stepped`, that imports TensorRT-LLM
- `stepped`    the LLM API, whose results come when they come, as the child's loop steps it
- `cache`      its KV-cache events as canonical blocks
- `api.json`   the names of TensorRT-LLM that this relies on, taken from its sources by `tools.trtllm_api`
"""
