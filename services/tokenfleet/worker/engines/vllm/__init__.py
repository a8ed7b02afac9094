"""vLLM: its engine core in a child process of the worker, stepped there, one message a step.

vLLM would run its core in a process of its own and talk to it through two more layers; here that process
is the worker's child, and what a step brings leaves it as it is. The core is used as vLLM's own in-process
client uses it, so tensor and pipeline parallel sizes, quantization and all else that it can do work as ever.

- `arguments` what a catalog entry may say, in vLLM's words
- `request`   sampling parameters in vLLM's words
- `engine`    the `Engine`: configuration, facts, what happens when memory is short
- `child`     the child's main program; only this imports vLLM
- `core`      vLLM's core as the child's loop steps it
"""
