"""vLLM's own engine server, as its users start it: what the engine `remote` attaches to."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tests import real_model

SETTINGS = {
    "SMG_VLLM_SERVICER_WARMUP": "off",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


@asynccontextmanager
async def vllm_server(**arguments: Any) -> AsyncIterator[str]:
    """The address of `vllm serve --grpc` with the small model; it may take a minute until it is ready."""
    port, events = _free_ports()
    publisher = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://*:{events}"}
    flags = {
        "host": "127.0.0.1",
        "port": port,
        "served-model-name": "small",
        "dtype": "bfloat16",
        "block-size": 32,
        "kv-events-config": json.dumps(publisher),
        **{name.replace("_", "-"): value for name, value in arguments.items()},
    }
    folder = await asyncio.to_thread(real_model.cache().folder, real_model.spec())
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("vllm")), "serve", str(folder), "--grpc", "--enforce-eager"),
        *(word for name, value in flags.items() for word in (f"--{name}", str(value))),
        env={**os.environ, **SETTINGS},
        start_new_session=True,
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]
