"""What the objects of a release have to be to each other. A rule answers the problems that it sees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.helm.rendering import NAMESPACE, Object, containers, label, of_kind, pods, selects

_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_KUBERNETES = re.compile(r"kubernetes://(?P<service>[a-z0-9-]+)(:(?P<port>[a-z0-9-]+))?")
_ADDRESS = re.compile(r"(?:[a-z]+://)?(?P<service>[a-z][a-z0-9-]*):(?P<port>[0-9]+)(/.*)?")

# What the release's own words say is the user's to create.
OUTSIDE_KEYS = {"secretName", "secretNames", "claimName", "existingConfigMap", "pullSecrets"}


def names(all_: list[Object]) -> Iterator[str]:
    seen: set[str] = set()
    for one in all_:
        if label(one) in seen:
            yield f"{label(one)}: is there twice"
        seen.add(label(one))
        if not _DNS_LABEL.fullmatch(one["metadata"]["name"]):
            yield f"{label(one)}: is no valid name"
        for key, value in one["metadata"].get("labels", {}).items():
            if len(str(value)) > 63:
                yield f"{label(one)}: the label {key} is too long"


def services(all_: list[Object]) -> Iterator[str]:
    """A Service selects pods, and each of its ports is one of theirs."""
    for one in of_kind(all_, "Service"):
        selected = _selected(all_, one["spec"]["selector"])
        if not selected and one["metadata"]["labels"]["app.kubernetes.io/component"] != "worker":
            yield f"{label(one)}: selects nothing"
        for owner, spec in selected:
            offered = _ports(spec)
            for port in one["spec"]["ports"]:
                if port["targetPort"] not in {*offered, *offered.values()}:
                    yield f"{label(one)}: {label(owner)} has no port {port['targetPort']!r}"


def budgets(all_: list[Object]) -> Iterator[str]:
    """Every Deployment has one budget, which always allows one eviction."""
    for one in of_kind(all_, "Deployment"):
        labels = one["spec"]["template"]["metadata"]["labels"]
        found = [
            budget
            for budget in of_kind(all_, "PodDisruptionBudget")
            if selects(budget["spec"]["selector"]["matchLabels"], labels)
        ]
        if len(found) != 1:
            yield f"{label(one)}: {len(found)} disruption budgets"
        for budget in found:
            if "minAvailable" in budget["spec"] or budget["spec"].get("maxUnavailable") != 1:
                yield f"{label(budget)}: may forbid every eviction"
    for budget in of_kind(all_, "PodDisruptionBudget"):
        if not _selected(all_, budget["spec"]["selector"]["matchLabels"]):
            yield f"{label(budget)}: selects nothing"


def autoscalers(all_: list[Object]) -> Iterator[str]:
    """What an autoscaler decides, the manifests leave out."""
    for one in of_kind(all_, "HorizontalPodAutoscaler"):
        target = one["spec"]["scaleTargetRef"]
        found = [each for each in of_kind(all_, target["kind"]) if each["metadata"]["name"] == target["name"]]
        if not found:
            yield f"{label(one)}: there is no {target['kind']} {target['name']}"
        for each in found:
            if "replicas" in each["spec"]:
                yield f"{label(each)}: states replicas beside an autoscaler: later upgrades conflict"


def volumes(all_: list[Object]) -> Iterator[str]:
    """Mounts and volumes belong together; what a service writes to lies on one that it can write to."""
    for one, _, spec in pods(all_):
        declared = {volume["name"]: volume for volume in spec.get("volumes", [])}
        mounted: set[str] = set()
        for container in containers(spec):
            mounts = container.get("volumeMounts", [])
            mounted |= {mount["name"] for mount in mounts}
            paths = [mount["mountPath"] for mount in mounts]
            if len(paths) != len(set(paths)):
                yield f"{label(one)}: two volumes at one path"
            writable = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
            for variable in container.get("env", []):
                folder = re.fullmatch(r"HOME|TOKENFLEET_\w+_CACHE_DIR", variable["name"])
                if folder and not _on(variable["value"], writable):
                    yield f"{label(one)}: {variable['name']} cannot be written to"
                if variable["name"] == "TOKENFLEET_WORKER_ENGINES" and _on(_home(container), {"/tmp"}):
                    yield f"{label(one)}: what its engine compiles would fill /tmp"
        for name in mounted ^ set(declared):
            yield f"{label(one)}: {name} is {'no volume' if name in mounted else 'mounted nowhere'}"


def _on(path: str, mounts: set[str]) -> bool:
    return any(path == mount or path.startswith(f"{mount}/") for mount in mounts)


def _home(container: Object) -> str:
    return next((str(each["value"]) for each in container["env"] if each["name"] == "HOME"), "/")


def references(all_: list[Object], outside: set[str]) -> Iterator[str]:
    """ConfigMaps, Secrets, claims and service accounts are the release's, or the user named them."""
    here = {(one["kind"], one["metadata"]["name"]) for one in all_}
    for one, _, spec in pods(all_):
        for kind, name in _referred(spec):
            if (kind, name) not in here and name not in outside:
                yield f"{label(one)}: there is no {kind} {name}"
        for volume in spec.get("volumes", []):
            source = volume.get("configMap")
            for each in of_kind(all_, "ConfigMap") if source else []:
                keys = {item["key"] for item in source.get("items", [])}
                if each["metadata"]["name"] == source["name"] and not keys <= set(each["data"]):
                    yield f"{label(one)}: {label(each)} has no {keys - set(each['data'])}"


def addresses(all_: list[Object]) -> Iterator[str]:
    """Every address in an environment is a port of a Service of this release."""
    offered = {
        one["metadata"]["name"]: {port["name"]: port["port"] for port in one["spec"]["ports"]}
        for one in of_kind(all_, "Service")
    }
    for one, _, spec in pods(all_):
        for container in containers(spec):
            for variable in container.get("env", []):
                value = str(variable.get("value", ""))
                match = _KUBERNETES.fullmatch(value) or _ADDRESS.fullmatch(value)
                if match is None or variable["name"] == "PIP_INDEX_URL":
                    continue
                ports: dict[str, Any] = offered.get(match["service"], {})
                port = match["port"]
                known = {*ports, *(str(number) for number in ports.values())}
                if not ports or (port and port not in known):
                    yield f"{label(one)}: {variable['name']}: nothing is at {value}"


def access(all_: list[Object]) -> Iterator[str]:
    """Only who has peers to find talks to Kubernetes, and may only list and watch endpoints."""
    bound: set[str] = set()
    roles = {one["metadata"]["name"]: one for one in of_kind(all_, "Role", "ClusterRole")}
    for one in of_kind(all_, "ClusterRole", "ClusterRoleBinding"):
        yield f"{label(one)}: reaches beyond the namespace"
    for binding in of_kind(all_, "RoleBinding"):
        if binding["roleRef"]["name"] not in roles:
            yield f"{label(binding)}: there is no role {binding['roleRef']['name']}"
        for subject in binding["subjects"]:
            bound.add(subject["name"])
            if subject["namespace"] != NAMESPACE:
                yield f"{label(binding)}: {subject['name']} is of another namespace"
    for role in roles.values():
        for rule in role["rules"]:
            if rule != {
                "apiGroups": ["discovery.k8s.io"],
                "resources": ["endpointslices"],
                "verbs": ["list", "watch"],
            }:
                yield f"{label(role)}: allows more than to list and watch endpoints: {rule}"
    for account in of_kind(all_, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{label(account)}: gives its token to whoever uses it"
    for one, _, spec in pods(all_):
        discovers = any(
            str(variable.get("value", "")).startswith("kubernetes://")
            for container in containers(spec)
            for variable in container.get("env", [])
        )
        has_token, may = spec["automountServiceAccountToken"], spec["serviceAccountName"] in bound
        if not discovers == has_token == may:
            yield f"{label(one)}: looks for peers {discovers}, has a token {has_token}, may list {may}"


def _selected(all_: list[Object], selector: dict[str, str]) -> list[tuple[Object, Object]]:
    return [(owner, spec) for owner, labels, spec in pods(all_) if selects(selector, labels)]


def _ports(spec: Object) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"] for each in containers(spec) for port in each.get("ports", [])
    }


def _referred(spec: Object) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", spec["serviceAccountName"]
    for secret in spec.get("imagePullSecrets", []):
        yield "Secret", secret["name"]
    for volume in spec.get("volumes", []):
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for container in containers(spec):
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                yield "Secret", source["secretKeyRef"]["name"]
            if "configMapKeyRef" in source:
                yield "ConfigMap", source["configMapKeyRef"]["name"]


def outside_names(values: Any) -> set[str]:
    """Names in the values of objects that the user brings."""
    found: set[str] = set()
    if isinstance(values, list):
        for each in values:
            found |= outside_names(each)
    elif isinstance(values, dict):
        for key, value in values.items():
            if key in OUTSIDE_KEYS:
                found |= _leaves(value)
            found |= outside_names(value)
    return found


def _leaves(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value.values())
    return set(value) if isinstance(value, list) else {value}


RULES = (names, services, budgets, autoscalers, volumes, addresses, access)
