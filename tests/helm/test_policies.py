"""The rules that no schema knows, for every rendering; and each rule shown to bite."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.helm import network_rules, pod_rules, release_rules
from tests.helm.rendering import VALUES, Object, objects, of_kind, pods, read_values

Rule = Callable[[list[Object]], Iterable[str]]

RULES: tuple[Rule, ...] = (*pod_rules.RULES, *release_rules.RULES, *network_rules.RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", VALUES)
def test_rule(name: str, rule: Rule) -> None:
    assert not list(rule(objects(name)))


@pytest.mark.parametrize("name", VALUES)
def test_every_reference_resolves(name: str) -> None:
    outside = release_rules.outside_names(read_values(name))
    assert not list(release_rules.references(objects(name), outside))


def _gateway(all_: list[Object]) -> Object:
    """The gateway's Deployment."""
    return next(one for one in of_kind(all_, "Deployment") if one["metadata"]["name"].endswith("-gateway"))


def _spec(all_: list[Object]) -> Object:
    found: Object = _gateway(all_)["spec"]["template"]["spec"]
    return found


def _container(all_: list[Object]) -> Object:
    found: Object = _spec(all_)["containers"][0]
    return found


def _worker(all_: list[Object]) -> Object:
    """The container of the first worker."""
    specs = (spec for _, labels, spec in pods(all_) if labels[network_rules.COMPONENT] == "worker")
    found: Object = next(specs)["containers"][0]
    return found


def _env(container: Object, name: str) -> Object:
    found: Object = next(each for each in container["env"] if each["name"] == name)
    return found


def _first(all_: list[Object], kind: str) -> Any:
    return of_kind(all_, kind)[0]


def _drop(node: Object, key: str) -> None:
    del node[key]


def _policy(all_: list[Object], component: str) -> Object:
    found: Object = next(
        one["spec"] for one in of_kind(all_, "NetworkPolicy") if one["metadata"]["name"].endswith(component)
    )
    return found


# Each breaks the rendering of values-cpu.yaml in one place that the rule of that name has to see.
BREAKS: list[tuple[Rule, str, Callable[[list[Object]], Any]]] = [
    (pod_rules.enumerations, "pull", lambda a: _container(a).update(imagePullPolicy="Sometimes")),
    (pod_rules.enumerations, "effect", lambda a: _spec(a)["tolerations"][0].update(effect="NoExec")),
    (pod_rules.enumerations, "service", lambda a: _first(a, "Service")["spec"].update(type="clusterip")),
    (
        pod_rules.selectors,
        "labels",
        lambda a: _gateway(a)["spec"]["template"]["metadata"].update(labels={"app": "other"}),
    ),
    (
        pod_rules.selectors,
        "greedy",
        lambda a: _drop(_gateway(a)["spec"]["selector"]["matchLabels"], "app.kubernetes.io/component"),
    ),
    (pod_rules.resources, "no limit", lambda a: _drop(_container(a)["resources"]["limits"], "memory")),
    (pod_rules.resources, "above", lambda a: _container(a)["resources"]["requests"].update(cpu="1001m")),
    (pod_rules.resources, "shared", lambda a: _container(a)["resources"]["limits"].update({"x/gpu": 1})),
    (pod_rules.confinement, "root", lambda a: _spec(a)["securityContext"].update(runAsNonRoot=False)),
    (pod_rules.confinement, "seccomp", lambda a: _drop(_spec(a)["securityContext"], "seccompProfile")),
    (pod_rules.confinement, "host", lambda a: _spec(a).update(hostNetwork=True)),
    (pod_rules.confinement, "links", lambda a: _drop(_spec(a), "enableServiceLinks")),
    (pod_rules.confinement, "process 1", lambda a: _drop(_spec(a), "shareProcessNamespace")),
    (pod_rules.confinement, "privileged", lambda a: _container(a)["securityContext"].update(privileged=True)),
    (
        pod_rules.confinement,
        "writable",
        lambda a: _drop(_container(a)["securityContext"], "readOnlyRootFilesystem"),
    ),
    (pod_rules.confinement, "caps", lambda a: _drop(_container(a)["securityContext"], "capabilities")),
    (pod_rules.images, "latest", lambda a: _container(a).update(image="tokenfleet/gateway:latest")),
    (pod_rules.images, "no tag", lambda a: _container(a).update(image="localhost:5000/gateway")),
    (pod_rules.probes, "missing", lambda a: _drop(_container(a), "startupProbe")),
    (pod_rules.probes, "port", lambda a: _container(a)["livenessProbe"]["grpc"].update(port=9999)),
    (
        pod_rules.probes,
        "name",
        lambda a: _container(a).update(livenessProbe={"tcpSocket": {"port": "nowhere"}}),
    ),
    (
        pod_rules.probes,
        "service",
        lambda a: _container(a)["readinessProbe"]["grpc"].update(service="tokenfleet.v1.Gateway"),
    ),
    (
        pod_rules.probes,
        "liveness asks for readiness",
        lambda a: _container(a)["livenessProbe"]["grpc"].update(service="tokenfleet.v1.Inference"),
    ),
    (
        pod_rules.probes,
        "TLS",
        lambda a: _container(a)["env"].append({"name": "TOKENFLEET_GATEWAY_EDGE_TLS_CERT", "value": "/x"}),
    ),
    (
        pod_rules.probes,
        "path",
        lambda a: _container(a).update(
            livenessProbe={"httpGet": {"port": "metrics", "path": "/health/ready"}}
        ),
    ),
    (pod_rules.drains, "grace", lambda a: _spec(a).update(terminationGracePeriodSeconds=300)),
    (pod_rules.drains, "preStop", lambda a: _drop(_container(a), "lifecycle")),
    (
        pod_rules.spread,
        "revision",
        lambda a: _drop(_spec(a)["topologySpreadConstraints"][0], "matchLabelKeys"),
    ),
    (
        pod_rules.spread,
        "taints",
        lambda a: _drop(_spec(a)["topologySpreadConstraints"][1], "nodeTaintsPolicy"),
    ),
    (pod_rules.tolerations, "slow", lambda a: _spec(a)["tolerations"].pop(0)),
    (pod_rules.environment_names, "twice", lambda a: _container(a)["env"].append(_container(a)["env"][0])),
    (release_rules.names, "twice", lambda a: a.append(a[0])),
    (release_rules.names, "long", lambda a: a[0]["metadata"].update(name="n" * 64)),
    (
        release_rules.services,
        "target",
        lambda a: _first(a, "Service")["spec"]["ports"][0].update(targetPort="web"),
    ),
    (release_rules.services, "nothing", lambda a: _first(a, "Service")["spec"].update(selector={"a": "b"})),
    (
        release_rules.budgets,
        "none",
        lambda a: a.remove(_first(a, "PodDisruptionBudget")),
    ),
    (
        release_rules.budgets,
        "never",
        lambda a: _first(a, "PodDisruptionBudget")["spec"].update(maxUnavailable=0),
    ),
    (
        release_rules.autoscalers,
        "replicas",
        lambda a: a.append(
            {
                "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "x"},
                "spec": {"scaleTargetRef": {"kind": "Deployment", "name": _gateway(a)["metadata"]["name"]}},
            }
        ),
    ),
    (release_rules.volumes, "no volume", lambda a: _spec(a).update(volumes=[])),
    (release_rules.volumes, "no mount", lambda a: _spec(a)["volumes"].append({"name": "idle"})),
    (
        release_rules.volumes,
        "read-only",
        lambda a: _container(a)["volumeMounts"][0].update(readOnly=True),
    ),
    (
        release_rules.volumes,
        "kernels",
        lambda a: _env(_worker(a), "HOME").update(value="/tmp"),
    ),
    (
        release_rules.addresses,
        "loader",
        lambda a: _container(a)["env"].append({"name": "X", "value": "fleet-loader:8085"}),
    ),
    (
        release_rules.addresses,
        "port name",
        lambda a: _container(a)["env"].append(
            {"name": "X", "value": "kubernetes://fleet-tokenfleet-router:http"}
        ),
    ),
    (release_rules.access, "verbs", lambda a: _first(a, "Role")["rules"][0]["verbs"].append("create")),
    (release_rules.access, "token", lambda a: _spec(a).update(automountServiceAccountToken=False)),
    (release_rules.access, "unbound", lambda a: _first(a, "RoleBinding")["subjects"].pop(0)),
    (network_rules.edges, "no way out", lambda a: _policy(a, "-router")["egress"].pop(1)),
    (network_rules.edges, "no way in", lambda a: _policy(a, "-worker")["ingress"][0]["from"].pop(0)),
    (
        network_rules.edges,
        "too much",
        lambda a: _policy(a, "-tokenizer")["egress"].append(_policy(a, "-router")["egress"][2]),
    ),
]


@pytest.mark.parametrize(
    ("rule", "break_"),
    [(rule, break_) for rule, _, break_ in BREAKS],
    ids=[f"{r.__name__}: {w}" for r, w, _ in BREAKS],
)
def test_rule_bites(rule: Rule, break_: Callable[[list[Object]], Any]) -> None:
    broken = objects("cpu")
    break_(broken)
    assert list(rule(broken))


def test_every_rule_is_shown_to_bite() -> None:
    assert {rule for rule, _, _ in BREAKS} | {network_rules.denied_by_default} == set(RULES)


def test_a_pod_that_no_policy_closes_is_seen() -> None:
    broken = [one for one in objects("cpu") if one["metadata"]["name"] != "fleet-tokenfleet"]
    seen = list(network_rules.denied_by_default(broken))
    assert len(seen) == sum(1 for _ in pods(broken))


@pytest.mark.parametrize("kind", ["Secret", "ConfigMap", "PersistentVolumeClaim", "ServiceAccount"])
def test_a_dangling_reference_is_seen(kind: str) -> None:
    broken = objects("every-branch")
    spec = _spec(broken)
    match kind:
        case "Secret":
            spec["imagePullSecrets"] = [{"name": "nobody"}]
        case "ConfigMap":
            spec["volumes"].append({"name": "c", "configMap": {"name": "nobody"}})
        case "PersistentVolumeClaim":
            spec["volumes"].append({"name": "c", "persistentVolumeClaim": {"claimName": "nobody"}})
        case _:
            spec["serviceAccountName"] = "nobody"
    outside = release_rules.outside_names(read_values("every-branch"))
    assert any(f"there is no {kind} nobody" in each for each in release_rules.references(broken, outside))
