"""Engines by name, imported by the workers that host them: one that simulates loads no llama.cpp."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import cast

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import EngineFactory

log = get_logger(__name__)

ENGINES = {
    "llamacpp": "tokenfleet.worker.engines.llamacpp.engine:LlamaCppEngine",
    "remote": "tokenfleet.worker.engines.remote.engine:RemoteEngine",
    "sim": "tokenfleet.worker.engines.sim:SimEngine",
    "transformers": "tokenfleet.worker.engines.transformers.engine:TransformersEngine",
    "trtllm": "tokenfleet.worker.engines.trtllm.engine:TrtllmEngine",
    "vllm": "tokenfleet.worker.engines.vllm.engine:VllmEngine",
}


def import_engines(names: Iterable[str]) -> None:
    """Before the first model comes: what stays with the worker anyway shall not lie among what goes again."""
    for name in names:
        try:
            engine_factory(name)
        except FleetError as error:
            log.warning("engine cannot be hosted", engine=name, detail=error.message)


def engine_factory(name: str) -> EngineFactory:
    """Raises FleetError when there is no such engine, or what it needs is not installed."""
    target = ENGINES.get(name)
    if target is None:
        raise FleetError(
            common_pb2.REASON_UNSUPPORTED,
            f"there is no engine {name!r}; known: {', '.join(sorted(ENGINES))}",
            field="engine",
        )
    module, _, attribute = target.partition(":")
    try:
        return cast(EngineFactory, getattr(importlib.import_module(module), attribute))
    except ImportError as error:
        raise FleetError(
            common_pb2.REASON_LOAD_FAILED,
            f"engine {name} is not installed here ({error}): pip install 'tokenfleet[worker-{name}]'",
        ) from error
