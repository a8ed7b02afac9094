"""What every pod of the chart has to be like. A rule answers the problems that it sees, as lines."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from tests.helm.rendering import Object, containers, label, of_kind, pods, selects
from tokenfleet.v1 import (
    inference_pb2,
    model_loader_pb2,
    router_pb2,
    tokenizer_pb2,
    worker_pb2,
)

_V1 = (inference_pb2, model_loader_pb2, router_pb2, tokenizer_pb2, worker_pb2)
VENDORS_SERVICE = "vllm.grpc.engine.VllmEngine"  # of an engine server in its vendor's own image
GRPC_SERVICES = {service.full_name for file in _V1 for service in file.DESCRIPTOR.services_by_name.values()}

_UNITS = {"": Decimal(1), "m": Decimal("0.001")}
_UNITS |= {unit: Decimal(1000) ** power for power, unit in enumerate("kMGT", start=1)}
_UNITS |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGT", start=1)}

# Enumerations that the published schemas leave as plain strings: by key, or by the key above and the key.
ENUMS: dict[str, set[str]] = {
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "nodeTaintsPolicy": {"Honor", "Ignore"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "policyTypes": {"Ingress", "Egress"},
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "unhealthyPodEvictionPolicy": {"AlwaysAllow", "IfHealthyBudget"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "medium": {"", "Memory", "HugePages"},
    "tolerations.operator": {"Exists", "Equal"},
    "matchExpressions.operator": {"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"},
    "strategy.type": {"RollingUpdate", "Recreate"},
    "seccompProfile.type": {"RuntimeDefault", "Localhost", "Unconfined"},
    "hostPath.type": {"", "Directory", "DirectoryOrCreate", "File", "FileOrCreate"},
    "Service.type": {"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"},
}


def amount(quantity: str | float) -> Decimal:
    """A Kubernetes quantity as a number."""
    text = str(quantity)
    unit = text.lstrip("0123456789.")
    return Decimal(text.removesuffix(unit) if unit else text) * _UNITS[unit]


def enumerations(all_: list[Object]) -> Iterator[str]:
    for one in all_:
        above = "Service" if one["kind"] == "Service" else ""
        yield from (f"{label(one)}: {problem}" for problem in _bad_enums(one.get("spec", {}), above))


def _bad_enums(node: Any, above: str) -> Iterator[str]:
    if isinstance(node, list):
        for each in node:
            yield from _bad_enums(each, above)
    elif isinstance(node, dict):
        for key, value in node.items():
            allowed = ENUMS.get(key) or ENUMS.get(f"{above}.{key}")
            for each in value if isinstance(value, list) else [value]:
                if allowed is not None and each not in allowed:
                    yield f"{key} is {each!r}, not one of {sorted(allowed)}"
            yield from _bad_enums(value, key)


def selectors(all_: list[Object]) -> Iterator[str]:
    """A Deployment's selector takes its own pods and nobody else's."""
    for one in of_kind(all_, "Deployment"):
        wanted = one["spec"]["selector"]["matchLabels"]
        taken = [label(owner) for owner, labels, _ in pods(all_) if selects(wanted, labels)]
        if taken != [label(one)]:
            yield f"{label(one)}: its selector takes the pods of {taken}"


def resources(all_: list[Object]) -> Iterator[str]:
    for where, container in _containers(all_):
        given = container.get("resources", {})
        requests, limits = given.get("requests", {}), given.get("limits", {})
        for name in ("cpu", "memory"):
            if name not in limits or name not in requests:
                yield f"{where}: {name} wants a request and a limit"
        for name, wanted in requests.items():
            if name in limits and amount(wanted) > amount(limits[name]):
                yield f"{where}: requests {wanted} of {name}, and may use {limits[name]}"
        for name, limit in limits.items():
            if "/" in name and requests.get(name) != limit:
                yield f"{where}: {name} cannot be shared: request what is the limit"


def confinement(all_: list[Object]) -> Iterator[str]:
    for one, _, spec in pods(all_):
        where, context = label(one), spec.get("securityContext", {})
        if not context.get("runAsNonRoot") or not context.get("runAsUser"):
            yield f"{where}: may run as root"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{where}: no seccomp profile"
        if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{where}: shares the host's namespaces"
        if spec.get("shareProcessNamespace") is not True:
            yield f"{where}: is deaf as process 1 when it is told to end while it starts"
        if spec.get("enableServiceLinks") is not False:
            yield f"{where}: enableServiceLinks puts unknown settings into the environment"
    for where, container in _containers(all_):
        context = container.get("securityContext", {})
        if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
            yield f"{where}: is or may become privileged"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{where}: its root file system can be written to"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{where}: keeps capabilities"


def images(all_: list[Object]) -> Iterator[str]:
    for where, container in _containers(all_):
        image = str(container["image"])
        tag = image.rpartition("/")[2].partition(":")[2]
        if not tag or tag == "latest" or "//" in image:
            yield f"{where}: {image!r} is no pinned image"


def probes(all_: list[Object]) -> Iterator[str]:
    """All three, on ports that exist; readiness asks for a service that exists, liveness for the process."""
    for one in of_kind(all_, "Deployment"):
        for container in containers(one["spec"]["template"]["spec"]):
            where = f"{label(one)} {container['name']}"
            ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                if kind not in container:
                    yield f"{where}: no {kind}"
                    continue
                yield from (f"{where}: {kind} {text}" for text in _bad_probe(kind, container[kind], ports))
                if "grpc" in container[kind] and _grpc_is_encrypted(container):
                    yield f"{where}: {kind} asks gRPC without TLS, and is refused"


def _bad_probe(kind: str, probe: Object, ports: dict[str, int]) -> Iterator[str]:
    handler = probe.get("grpc") or probe.get("tcpSocket") or probe.get("httpGet") or {}
    port = handler.get("port")
    if port not in ports and port not in ports.values():
        yield f"asks port {port!r}, and there are {ports}"
    if "grpc" in probe:
        service = handler.get("service", "")
        if kind == "readinessProbe" and service not in GRPC_SERVICES | {VENDORS_SERVICE}:
            yield f"asks for {service!r}, which is no service"
        if kind != "readinessProbe" and service:
            yield f"asks for {service!r}: a service that is not ready would be restarted"
    if "httpGet" in probe:
        wanted = "/health/ready" if kind == "readinessProbe" else "/health/live"
        if handler.get("path") != wanted:
            yield f"asks for {handler.get('path')!r} instead of {wanted!r}"


def _grpc_is_encrypted(container: Object) -> bool:
    """Whether the environment gives the port that others call a certificate: a gateway's is the edge's."""
    setting = "_EDGE_TLS_CERT" if container["name"] == "gateway" else "_TLS_CERT"
    return any(each["name"].endswith(setting) for each in container.get("env", []))


def drains(all_: list[Object]) -> Iterator[str]:
    """Kubernetes waits for preStop, the service's own grace and its farewells."""
    for where, container, spec in _serving(all_):
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        told = [each for each in container["env"] if each["name"].endswith(("_GRACE_S", "_SHUTDOWN_DELAY_S"))]
        if not sleep:
            yield f"{where}: no preStop"
        if not any(each["name"].endswith("_GRACE_S") for each in told):
            yield f"{where}: is not told its grace"
        needed = sleep + sum(float(each["value"]) for each in told) + 10
        if spec.get("terminationGracePeriodSeconds", 30) < needed:
            yield f"{where}: is killed before the {needed} s are over that it needs to end"


def spread(all_: list[Object]) -> Iterator[str]:
    for one in of_kind(all_, "Deployment"):
        inner = one["spec"]["template"]
        constraints = inner["spec"].get("topologySpreadConstraints", [])
        if {each["topologyKey"] for each in constraints} != {
            "topology.kubernetes.io/zone",
            "kubernetes.io/hostname",
        }:
            yield f"{label(one)}: is not spread over zones and nodes"
        for each in constraints:
            if each.get("matchLabelKeys") != ["pod-template-hash"]:
                yield f"{label(one)}: a rolling update can leave a {each['topologyKey']} empty"
            if each.get("nodeTaintsPolicy") != "Honor":
                yield f"{label(one)}: waits for a {each['topologyKey']} that is down"
            if each["labelSelector"]["matchLabels"] != one["spec"]["selector"]["matchLabels"]:
                yield f"{label(one)}: is spread against other pods than its own"


def tolerations(all_: list[Object]) -> Iterator[str]:
    for one, _, spec in pods(all_):
        for taint in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
            told = [each for each in spec.get("tolerations", []) if each.get("key") == taint]
            if not told or told[0].get("tolerationSeconds", 300) >= 300:
                yield f"{label(one)}: stays on a dead node ({taint})"


def environment_names(all_: list[Object]) -> Iterator[str]:
    for where, container in _containers(all_):
        names = [each["name"] for each in container.get("env", [])]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{where}: {name} is set twice"


def _containers(all_: list[Object]) -> Iterator[tuple[str, Object]]:
    for one, _, spec in pods(all_):
        for container in containers(spec):
            yield f"{label(one)} {container['name']}", container


def _serving(all_: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """The containers that run a service of the fleet."""
    for one, _, spec in pods(all_):
        for container in containers(spec):
            if any(port["name"] == "grpc" for port in container.get("ports", [])):
                yield f"{label(one)} {container['name']}", container, spec


RULES = (
    enumerations,
    selectors,
    resources,
    confinement,
    images,
    probes,
    drains,
    spread,
    tolerations,
    environment_names,
)
