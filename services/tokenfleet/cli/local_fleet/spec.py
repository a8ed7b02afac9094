"""What a local fleet consists of, and the command line of each of its processes.

Everything here is plain data: `plan` turns a fleet's description and the ports it got into one `ProcessSpec`
per process, which the supervisor can run without knowing what it is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenfleet.cli.local_fleet.ports import LOOPBACK
from tokenfleet.cli.local_fleet.probes import GrpcHealth, HttpHealth, Probe, StorePing
from tokenfleet.cli.local_fleet.security import FleetSecurity
from tokenfleet.cli.local_fleet.store import server_binary, server_command

GATEWAY, ROUTER, TOKENIZER, WORKER, LOADER, STORE = (
    *("gateway", "router", "tokenizer", "worker"),
    *("model-loader", "store"),
)
# Who asks somebody else stops first: no process ever loses one that it still needs.
STOP_ORDER = ((GATEWAY,), (ROUTER, TOKENIZER), (WORKER,), (LOADER,), (STORE,))


@dataclass(frozen=True, kw_only=True)
class FleetSpec:
    """A fleet on one machine. `flags`, `env` and `cpus` are keyed by a process's name or its role."""

    state_dir: Path
    host: str = LOOPBACK  # where the gateway listens; everything else stays on the loopback interface
    http_port: int = 0  # 0: a free one
    grpc_port: int = 0  # 0: a free one
    tokenizers: int = 2
    routers: int = 1
    workers: int = 2
    zones: Sequence[str] = ("zone-a", "zone-b")  # workers get them in turn; the gateway is in the first
    engines: Sequence[str] = ("llamacpp",)  # all workers host each; of "a,b" they get one in turn
    catalog: Path | None = None  # None: the model-loader's default
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    cpus: Mapping[str, Sequence[int]] = field(default_factory=dict)  # Linux: pins the process to these cores
    security: FleetSecurity = field(default_factory=FleetSecurity)
    restart: bool = True  # a process that crashes gets another life
    grace_s: float = 10.0  # for each process to finish its work when it is told to stop
    start_timeout_s: float = 120.0  # for all processes to be ready; loading models is not part of it

    def __post_init__(self) -> None:
        for name in ("tokenizers", "routers", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: a fleet needs at least one, got {getattr(self, name)}")
        for name in ("zones", "engines"):
            if not getattr(self, name):
                raise ValueError(f"{name}: name at least one")
        known = {*self.process_names(), *(role for phase in STOP_ORDER for role in phase)}
        for mapping in (self.flags, self.env, self.cpus):
            if unknown := set(mapping) - known:
                raise ValueError(f"no process or role is called {min(unknown)!r}; there are {sorted(known)}")

    @property
    def all_engines(self) -> set[str]:
        """Those that some worker hosts."""
        return {engine for number in range(self.workers) for engine in _engines(self, f"{WORKER}-{number}")}

    def process_names(self) -> list[str]:
        """All processes, in the order in which they are shown."""
        return [
            *(STORE, LOADER),
            *_routers(self.routers),
            *_numbered(WORKER, self.workers),
            *_numbered(TOKENIZER, self.tokenizers),
            GATEWAY,
        ]


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """One process: what to run, where it answers, how it tells that it is ready."""

    name: str
    role: str
    command: tuple[str, ...]
    probe: Probe
    address: str = ""  # host:port of its gRPC, or the path of its socket
    zone: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    cpus: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The addresses and paths that the processes of one fleet agree on."""

    http: str
    grpc: Mapping[str, str]  # host:port by process name
    metrics: Mapping[str, str]
    store_socket: Path
    store_data: Path

    def targets(self, role: str) -> str:
        """The addresses of all processes of a role, as the services' flags want them."""
        return ",".join(self.grpc[name] for name in self.grpc if _role(name) == role)


def plan(spec: FleetSpec, layout: Layout) -> list[ProcessSpec]:
    """All processes of the fleet, the store first."""
    own_flags = _service_flags(spec, layout)
    processes = [_store(spec, layout)]
    for name in spec.process_names():
        if name == STORE:
            continue
        role = _role(name)
        own = (
            *("--listen", layout.grpc[name]),
            *("--metrics-listen", layout.metrics[name]),
            *("--grace-s", f"{spec.grace_s:g}"),
            "--reflection",
            *spec.security.peer_flags(role),
            *own_flags[name],
        )
        processes.append(
            ProcessSpec(
                name=name,
                role=role,
                command=(
                    *(sys.executable, "-m", f"tokenfleet.{role.replace('-', '_')}"),
                    *_overridden(_overridden(own, spec.flags.get(role, ())), spec.flags.get(name, ())),
                ),
                probe=_probe(spec, layout, name),
                address=layout.grpc[name],
                zone=_zone(spec, name),
                env={**spec.env.get(role, {}), **spec.env.get(name, {})},
                cpus=tuple(spec.cpus.get(name, spec.cpus.get(role, ()))),
            )
        )
    return processes


_HEALTH = {
    GATEWAY: "tokenfleet.v1.Inference",
    ROUTER: "tokenfleet.v1.Router",
    TOKENIZER: "tokenfleet.v1.Tokenizer",
    WORKER: "tokenfleet.v1.Worker",
    LOADER: "tokenfleet.v1.ModelLoader",
}


def _probe(spec: FleetSpec, layout: Layout, name: str) -> Probe:
    role = _role(name)
    asks_for_certificates = spec.security.edge if role == GATEWAY else spec.security.peers is not None
    if asks_for_certificates:
        return HttpHealth(layout.metrics[name])
    return GrpcHealth(layout.grpc[name], _HEALTH[role])


def _service_flags(spec: FleetSpec, layout: Layout) -> dict[str, tuple[str, ...]]:
    loader, workers = layout.grpc[LOADER], layout.targets(WORKER)
    flags: dict[str, tuple[str, ...]] = {
        GATEWAY: (
            *("--http-listen", layout.http),
            *("--tokenizers", layout.targets(TOKENIZER)),
            *("--routers", layout.targets(ROUTER)),
            *("--loader", loader),
            *("--zone", spec.zones[0]),
            *spec.security.gateway_flags(),
        ),
        LOADER: (
            *("--workers", workers, "--store", f"unix://{layout.store_socket}"),
            *(("--catalog", str(spec.catalog)) if spec.catalog else ()),
        ),
    }
    for name in _routers(spec.routers):
        flags[name] = ("--workers", workers, "--loader", loader)
    for name in _numbered(TOKENIZER, spec.tokenizers):
        flags[name] = ("--loader", loader)
    for name in _numbered(WORKER, spec.workers):
        flags[name] = (
            "--name",
            name,
            "--zone",
            _zone(spec, name),
            "--engines",
            ",".join(_engines(spec, name)),
        )
    return flags


def _store(spec: FleetSpec, layout: Layout) -> ProcessSpec:
    return ProcessSpec(
        name=STORE,
        role=STORE,
        command=(
            *server_command(server_binary(), layout.store_socket, layout.store_data),
            *spec.flags.get(STORE, ()),
        ),
        probe=StorePing(layout.store_socket),
        address=str(layout.store_socket),
        env=spec.env.get(STORE, {}),
        cpus=tuple(spec.cpus.get(STORE, ())),
    )


def _numbered(role: str, count: int) -> list[str]:
    return [f"{role}-{number}" for number in range(count)]


def _routers(count: int) -> list[str]:
    """The only one needs no number."""
    return [ROUTER] if count == 1 else _numbered(ROUTER, count)


def _role(name: str) -> str:
    head, _, tail = name.rpartition("-")
    return head if tail.isdigit() else name


def _zone(spec: FleetSpec, name: str) -> str:
    if _role(name) == WORKER:
        return spec.zones[int(name.rpartition("-")[2]) % len(spec.zones)]
    return spec.zones[0] if name == GATEWAY else ""


def _engines(spec: FleetSpec, worker: str) -> list[str]:
    number = int(worker.rpartition("-")[2])
    choices = [[one.strip() for one in engine.split(",")] for engine in spec.engines]
    return list(dict.fromkeys(each[number % len(each)] for each in choices))


def _overridden(flags: Sequence[str], by: Sequence[str]) -> tuple[str, ...]:
    """`flags` without those that `by` has too, followed by `by`: a list given twice would be joined."""
    replaced = {flag.partition("=")[0] for flag in by if flag.startswith("--")}
    kept: list[str] = []
    keeps = True
    for part in flags:
        if part.startswith("--"):
            keeps = part.partition("=")[0] not in replaced
        if keeps:
            kept.append(part)
    return (*kept, *by)
