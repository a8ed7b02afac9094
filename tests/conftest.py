"""Async tests run on the event loop that the services run on."""

import asyncio
from collections.abc import Callable, Mapping

import uvloop
from hypothesis import settings

import tokenfleet  # noqa: F401 - before grpc, for which it sets the environment


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


# How fast an example runs depends on the machine: that is for benchmarks.
settings.register_profile("tokenfleet", deadline=None)
settings.load_profile("tokenfleet")
