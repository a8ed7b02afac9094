"""`tokenfleet up`: a fleet in the foreground, from the first check to the last process gone."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shlex
import signal
import socket
from collections.abc import Coroutine
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tokenfleet.cli.discovery import own_command, reachable
from tokenfleet.cli.errors import CliError
from tokenfleet.cli.loading import follow_warm_models, servable_models
from tokenfleet.cli.local_fleet import (
    FleetAlreadyRunsError,
    FleetSecurity,
    FleetSpec,
    LocalFleet,
    LocalFleetError,
    PortTakenError,
)
from tokenfleet.cli.local_fleet.state import default_root
from tokenfleet.cli.narrator import Narrator
from tokenfleet.v1 import common_pb2

QUESTION = "What is the capital of France?"
INTERRUPTED = 130
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """The command's options; None where a default depends on another option."""

    host: str
    port: int
    grpc_port: int | None
    workers: int
    tokenizers: int
    routers: int
    zones: tuple[str, ...]
    engines: tuple[str, ...]
    catalog: Path | None
    state_dir: Path | None
    grace_s: float
    api_keys: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def spec(self) -> FleetSpec:
        """Raises CliError that names the option at fault."""
        if self.grpc_port is None and self.port == 65535:
            raise CliError("--port 65535 leaves no port behind it for gRPC: name one with --grpc-port")
        if self.grpc_port == self.port:
            raise CliError(f"--port and --grpc-port are both {self.port}: HTTP and gRPC need one each")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise CliError("--tls-cert and --tls-key go together: give both or neither")
        try:
            return FleetSpec(
                state_dir=self.state_dir or default_root() / str(self.port),
                host=self.host,
                http_port=self.port,
                grpc_port=self.grpc_port or self.port + 1,
                workers=self.workers,
                tokenizers=self.tokenizers,
                routers=self.routers,
                zones=self.zones,
                engines=self.engines,
                catalog=self.catalog,
                grace_s=self.grace_s,
                security=FleetSecurity(
                    api_keys=self.api_keys, edge_cert=self.tls_cert, edge_key=self.tls_key
                ),
            )
        except ValueError as error:
            raise CliError(str(error)) from error


def run_fleet(options: UpOptions) -> int:
    """Runs a fleet until it is told to stop; answers the exit code. Raises CliError."""
    spec = options.spec()
    _require_what_the_fleet_needs(spec.all_engines)
    _require_a_good_catalog(options.catalog)
    try:
        return asyncio.run(_Up(spec).run())
    except PortTakenError as error:
        free = _free_pair(options.port)
        raise CliError(
            f"{error}. Choose another: make run PORT={free} (or tokenfleet up --port {free})"
        ) from error
    except FleetAlreadyRunsError as error:
        free = _free_pair(options.port)
        raise CliError(
            f"{error}: stop it there with Ctrl-C, or start another beside it: make run PORT={free} "
            f"(or tokenfleet up --port {free})"
        ) from error
    except LocalFleetError as error:
        raise CliError(str(error)) from error


class _Up:
    """One run of the command."""

    def __init__(self, spec: FleetSpec) -> None:
        self._spec = spec
        self._narrator = Narrator(spec.process_names(), str(spec.state_dir / "logs"))
        self._fleet = LocalFleet(spec, self._narrator.happened)
        self._stop_asked = asyncio.Event()
        self._at_once = False

    @property
    def _loader(self) -> str:
        return self._fleet.addresses["model-loader"]

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._interrupted)
        try:
            with self._narrator:
                await self._until_stopped()
        except BaseException:
            await self._fleet.stop(0 if self._at_once else None)
            raise
        report = await self._fleet.stop()
        for leftover in report.left_behind:
            self._narrator.say(f"killed what was left behind: {leftover}", style="yellow")
        self._narrator.say("everything is stopped" if not self._at_once else "everything is killed")
        return INTERRUPTED if self._at_once else 0

    def _interrupted(self) -> None:
        if self._stop_asked.is_set():
            self._at_once = True
            self._fleet.kill_now()
            return
        self._stop_asked.set()
        self._narrator.stopping(
            "stopping: running requests may finish first; Ctrl-C again kills everything at once"
        )

    async def _until_stopped(self) -> None:
        """Returns when somebody asks to stop; raises when the fleet does not start or cannot go on."""
        await self._unless_stopped(self._fleet.launch())
        if not self._stop_asked.is_set():
            await self._unless_stopped(self._welcome(), self._despair())

    async def _welcome(self) -> None:
        for leftover in self._fleet.predecessors:
            self._narrator.say(f"ended what an earlier fleet had left behind: {leftover}", style="yellow")
        # models first: a process that needs one is ready when it has arrived, which may take its time
        failures = await follow_warm_models(self._loader, self._spec.all_engines, self._narrator.loading)
        self._report_failures(failures)
        await self._fleet.wait_ready()
        self._narrator.running()
        await self._invite([name for name, failure in failures.items() if failure is None])
        await self._stop_asked.wait()

    async def _despair(self) -> None:
        raise await self._fleet.wait_given_up()

    def _report_failures(self, failures: dict[str, common_pb2.Failure | None]) -> None:
        failed = {name: failure for name, failure in failures.items() if failure is not None}
        logs = f"the workers' logs are in {self._spec.state_dir / 'logs'}"
        if failed and len(failed) == len(failures):
            causes = "\n".join(f"  {name}: {failure.message}" for name, failure in failed.items())
            raise CliError(f"no model could be loaded ({logs}):\n{causes}")
        for name, failure in failed.items():
            self._narrator.say(f"{name} could not be loaded: {failure.message} ({logs})", style="red")

    async def _invite(self, loaded: list[str]) -> None:
        url, say = reachable(self._fleet.http_url), self._narrator.say
        say()
        say(
            f"tokenfleet is up: {url} (gRPC on {reachable(self._fleet.addresses['gateway'])})",
            style="bold green",
        )
        if not loaded:
            async with grpc.aio.insecure_channel(self._loader) as channel:
                loaded = [spec.name for spec in await servable_models(channel, self._spec.all_engines)]
        say()
        if loaded:
            say("Ask it something:")
            say(f"  {first_call(url, loaded[0], self._spec.security)}")
        else:
            say(
                f"No model of the catalog runs on the engines {', '.join(sorted(self._spec.all_engines))}.",
                style="yellow",
            )
        say()
        say(f"chat     {own_command()} chat")
        say(f"logs     {self._spec.state_dir / 'logs'}")
        say(f"status   {own_command()} status")
        say("stop     Ctrl-C")

    async def _unless_stopped(self, *works: Coroutine[Any, Any, object]) -> None:
        """Runs them until the first ends, or somebody asks to stop; raises what the first raised."""
        tasks = [asyncio.create_task(work) for work in (self._stop_asked.wait(), *works)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def first_call(url: str, model: str, security: FleetSecurity | None = None) -> str:
    """A line that can be pasted into any shell and is answered."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 64,
        "temperature": 0,
    }
    data = shlex.quote(json.dumps(body))
    security = security or FleetSecurity()
    trust = f"--cacert {shlex.quote(str(security.edge_cert))} " if security.edge else ""
    key = '-H "Authorization: Bearer $TOKENFLEET_API_KEY" ' if security.api_keys else ""
    return f"curl {trust}{url}/v1/chat/completions {key}-H 'Content-Type: application/json' -d {data}"


def _require_what_the_fleet_needs(engines: AbstractSet[str]) -> None:
    if importlib.util.find_spec("psutil") is None or importlib.util.find_spec("uvicorn") is None:
        raise CliError("a local fleet needs more than the client: pip install 'tokenfleet[local]'")
    if "llamacpp" in engines and importlib.util.find_spec("xllamacpp") is None:
        raise CliError(
            "the engine llamacpp is not installed: pip install 'tokenfleet[local]'; where there is no build "
            "of it (Macs with an Intel processor), --engine sim runs the fleet with a simulated engine"
        )
    if "vllm" in engines and importlib.util.find_spec("vllm") is None:
        raise CliError(
            "the engine vllm is not installed here: on Linux, make setup-engines gets its build for CPUs, "
            "and .venv-engines/bin/tokenfleet up runs the fleet with it"
        )


def _require_a_good_catalog(path: Path | None) -> None:
    """What the model-loader would refuse is better said before seven processes have started."""
    if path is None:
        return
    from tokenfleet.model_loader.catalog import CatalogError, read_catalog

    try:
        read_catalog(path)
    except CatalogError as error:
        raise CliError(str(error)) from error


def _free_pair(beside: int) -> int:
    """A port near by that is free together with its successor, for HTTP and gRPC."""
    for port in range(beside + 10, 65534, 10):
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", port))
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    return beside
