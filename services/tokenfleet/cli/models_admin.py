"""What `tokenfleet models load` and its like do, through the gateway's admin endpoints.

Through the gateway and not to the model-loader itself, because that is the door which knows who may.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tokenfleet.cli.console import plain_or_coloured
from tokenfleet.cli.discovery import local_fleet, reachable
from tokenfleet.cli.errors import CliError
from tokenfleet.cli.gateway_http import GatewayError, GatewayHttp
from tokenfleet.cli.load_bar import LoadBar

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Target:
    """Which fleet, and as whom."""

    url: str = ""
    port: int | None = None
    api_key: str = ""
    as_json: bool = False

    def gateway(self) -> GatewayHttp:
        """Raises CliError when there is no such fleet."""
        if self.url and self.port:
            raise CliError("--url and --port exclude each other: a URL has a port of its own")
        if self.url:
            return GatewayHttp(self.url, self.api_key)
        record = local_fleet(self.port, elsewhere="models --url http://host:8080")
        return GatewayHttp(reachable(record["http"]), self.api_key)

    def tell(self, answer: Mapping[str, Any], words: str) -> None:
        print(json.dumps(answer, indent=2) if self.as_json else words)


def load(target: Target, model: str, replicas: int) -> int:
    """Follows the load to its end; Ctrl-C stops only the watching. Raises GatewayError when it fails."""
    last = None
    try:
        with _watched() as bar:
            for last in target.gateway().load({"model": model, "replicas": replicas}):
                bar.show(last)
    except KeyboardInterrupt:
        print(f"the load of {model} goes on; see: tokenfleet models", file=sys.stderr)
        return INTERRUPTED
    target.tell({"model": model, "stage": last.stage if last else "ready"}, f"{model} is loaded")
    return 0


def unload(target: Target, model: str, worker: str, *, force: bool) -> int:
    """1 when a worker did not let it go. Raises GatewayError."""
    order = {"model": model, "worker_id": _worker_id(target, model, worker), "force": force}
    answer = target.gateway().order("POST", "/admin/models/unload", order)
    lines = []
    for each in answer["workers"]:
        if each["done"]:
            lines.append(
                f"{model} is unloaded from {each['worker_id']}: {each['freed_bytes'] / 1e6:.0f} MB are free"
            )
        else:
            hint = (
                "; --force lets its requests go on elsewhere" if each["failure"]["reason"] == "busy" else ""
            )
            lines.append(f"{model} stays on {each['worker_id']}: {each['failure']['message']}{hint}")
    target.tell(answer, "\n".join(lines))
    return 0 if all(each["done"] for each in answer["workers"]) else 1


def pin(target: Target, model: str, *, pinned: bool) -> None:
    """What is pinned is loaded too, also where an operator had unloaded it. Raises GatewayError."""
    answer = target.gateway().order("POST", "/admin/models/pin", {"model": model, "pinned": pinned})
    if pinned:
        with _watched() as bar:
            for step in target.gateway().load({"model": model}):
                bar.show(step)
    target.tell(
        answer,
        f"{model} is pinned: it is kept loaded, and no other model takes its memory"
        if pinned
        else f"{model} is not pinned any more: it goes when its memory is needed",
    )


def add(target: Target, entry: str | dict[str, Any], *, replace: bool) -> str:
    """The name of the model that was added. Raises GatewayError."""
    answer = target.gateway().order("POST", "/admin/models", {"entry": entry, "replace": replace})
    target.tell(answer, f"{answer['model']} is in the catalog: its first request loads it")
    return str(answer["model"])


def remove(target: Target, model: str) -> None:
    """Raises GatewayError."""
    answer = target.gateway().order("POST", "/admin/models/remove", {"model": model})
    target.tell(
        answer, f"{model} is out of the catalog; where it is loaded, it goes as soon as nobody uses it"
    )


def entry_of(
    name: str, source: str, engines: list[str], given: Mapping[str, Any], arguments: list[str]
) -> dict[str, Any]:
    """A catalog entry out of options; what was not given is left to the catalog's defaults."""
    sizes = {key: given[key] for key in ("weights_bytes", "kv_bytes") if given.get(key)}
    parsed = {"arguments": dict(map(_argument, arguments))} if arguments else {}
    rest = {key: value for key, value in given.items() if value and key not in sizes}
    return {
        "name": name,
        "source": source,
        **rest,
        "engines": [{"engine": each, **sizes, **parsed} for each in engines],
    }


@contextmanager
def _watched() -> Iterator[LoadBar]:
    bar = LoadBar(plain_or_coloured(stderr=True))
    try:
        yield bar
    finally:
        bar.end()


def _argument(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise CliError(f"--argument {text!r}: write NAME=VALUE, such as n_parallel=4")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _worker_id(target: Target, model: str, worker: str) -> str:
    """People know workers by their names, and these keep them when they are started again."""
    if not worker:
        return ""
    told = target.gateway().order("GET", "/admin/models")
    known = {each["worker"] or each["worker_id"]: each["worker_id"] for each in told["workers"]}
    known |= {each["worker_id"]: each["worker_id"] for each in told["workers"]}
    if worker not in known:
        names = ", ".join(sorted(each["worker"] or each["worker_id"] for each in told["workers"])) or "none"
        raise CliError(f"--worker: no worker is called {worker!r}; there are: {names}")
    return str(known[worker])


__all__ = ["GatewayError", "Target", "add", "entry_of", "load", "pin", "remove", "unload"]
