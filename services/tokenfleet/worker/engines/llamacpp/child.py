"""The child process: llama.cpp's server on a Unix socket, until the worker closes the pipe or dies.

Its configuration arrives as the first line of standard input; its readiness leaves as one line on standard
output. After that the open pipe is the worker's sign of life: a worker that was killed cannot clean up, but
the kernel closes its pipes.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tokenfleet.worker.engines.hosted.child import close_inherited, die_with_parent

_CPU_TYPES = (0, 3)  # GGML_BACKEND_DEVICE_TYPE_CPU, and _ACCEL: libraries that compute on the CPU
# On a CPU a prompt is computed no faster in larger batches, and everything else waits for a step to end.
_CPU_BATCH = 64
_GPU_BATCH = 512


def main() -> None:
    close_inherited()
    ready = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # llama.cpp may print; the answer must stay alone
    # Loading holds the interpreter's lock, so no thread could notice the pipe closing: the kernel does.
    die_with_parent()
    line = sys.stdin.readline()
    if not line:
        return
    config = json.loads(line)
    try:
        server = start(config)
    except Exception as error:
        if (flush := log_flusher()) is not None:
            flush()  # it says why
        sys.exit(f"{type(error).__name__}: {error}")
    os.write(ready, b'{"ready": {}}\n')
    os.close(ready)
    die_with_parent(0)
    _serve_until_the_pipe_closes(server, config["socket"])


def _serve_until_the_pipe_closes(server: Any, socket: str) -> NoReturn:
    """Leaves without the server's destructor, which may wait for one of its threads for ever."""
    assert server is not None
    sys.stdin.read()
    shutil.rmtree(os.path.dirname(socket), ignore_errors=True)
    os._exit(0)


def start(config: dict[str, Any], port: int = 1) -> Any:
    """llama.cpp's server. A Unix socket has no port, but 0 would mean: do not listen."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = config["model"]
    params.hostnames = [config["socket"]]
    params.port = port
    params.n_parallel = config["n_parallel"]
    params.n_ctx = config["n_ctx"]
    params.n_batch = params.n_ubatch = config["n_batch"] or max(_batch_by_device(), config["n_parallel"])
    params.n_gpu_layers = config["n_gpu_layers"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config["n_threads"]
    params.kv_unified = True  # all slots share one cache: one long request, or many short ones
    params.cache_ram_mib = 0  # no second cache beside the one that the worker counts
    params.n_threads_http = config["n_parallel"] + 4  # a streaming connection holds one
    params.warmup = False  # the worker's canary is one
    params.endpoint_slots = False
    params.ui = False
    params.verbosity = 2
    return xllamacpp.Server(params)


def log_flusher() -> Callable[[], object] | None:
    """Waits until all is written that llama.cpp has logged; None for a build that cannot be asked to.

    A thread of its own writes the log, and no process that ends waits for it. The names are C++'s for
    `common_log_main` and `common_log_flush`.
    """
    import xllamacpp.xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    log = getattr(library, "_Z15common_log_mainv", None)
    flush = getattr(library, "_Z16common_log_flushP10common_log", None)
    if log is None or flush is None:
        return None
    log.restype, flush.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return lambda: flush(log())


def _batch_by_device() -> int:
    import xllamacpp

    on_cpu = all(device["type"] in _CPU_TYPES for device in xllamacpp.get_device_info())
    return _CPU_BATCH if on_cpu else _GPU_BATCH


if __name__ == "__main__":
    main()
