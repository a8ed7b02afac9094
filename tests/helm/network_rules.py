"""The edges that the network lets through, read back from the NetworkPolicies.

An edge works only when both ends allow it, so the two sides are compared with each other and with what the
services really ask of each other.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.helm.rendering import Object, label, of_kind, pods, selects

COMPONENT = "app.kubernetes.io/component"

Edge = tuple[str, str, int]  # who, whom, on which port

# The way of a request (docs/architecture.md), with the plain frames beside gRPC where there are any.
EDGES: set[Edge] = {
    ("gateway", "tokenizer", 8082),
    ("gateway", "tokenizer", 10000),
    ("gateway", "router", 8083),
    ("gateway", "router", 10000),
    ("gateway", "worker", 8084),
    ("gateway", "worker", 10000),
    ("gateway", "model-loader", 8085),
    ("tokenizer", "model-loader", 8085),
    ("router", "model-loader", 8085),
    ("router", "worker", 8084),
    ("model-loader", "worker", 8084),
    ("test", "gateway", 8080),
}
STORE_EDGE: Edge = ("model-loader", "store", 6379)
# Harmless, and not worth a further rule: who may use one port of a component may use its other one.
TOLERATED: set[Edge] = {
    ("router", "worker", 10000),
    ("model-loader", "worker", 10000),
    ("test", "gateway", 8081),
}


def denied_by_default(all_: list[Object]) -> Iterator[str]:
    policies = of_kind(all_, "NetworkPolicy")
    closed = [
        one["spec"]["podSelector"]["matchLabels"]
        for one in policies
        if set(one["spec"]["policyTypes"]) == {"Ingress", "Egress"} and not _opens(one)
    ]
    for one, labels, _ in pods(all_) if policies else []:
        if not any(selects(selector, labels) for selector in closed):
            yield f"{label(one)}: what is not forbidden to it is allowed"


def edges(all_: list[Object]) -> Iterator[str]:
    policies = of_kind(all_, "NetworkPolicy")
    if not policies:
        return
    running = {labels[COMPONENT] for _, labels, _ in pods(all_)} | {"worker"}
    wanted = {each for each in {*EDGES, STORE_EDGE} if {each[0], each[1]} <= running}
    sending, receiving = set(_edges(policies, "egress")), set(_edges(policies, "ingress"))
    if _everybody_reaches(policies, "gateway"):
        receiving.add(("test", "gateway", 8080))
    tolerated = TOLERATED | _further_frames(sending | receiving)
    for who, whom, port in sorted(wanted - sending):
        yield f"{who} is not let out to {whom}:{port}"
    for who, whom, port in sorted(wanted - receiving):
        yield f"{whom}:{port} does not let {who} in"
    for who, whom, port in sorted((sending | receiving) - wanted - tolerated):
        yield f"{who} may reach {whom}:{port}, and has no business there"


def _opens(policy: Object) -> bool:
    return bool(policy["spec"].get("ingress") or policy["spec"].get("egress"))


def _edges(policies: list[Object], side: str) -> Iterator[Edge]:
    for policy in policies:
        own = policy["spec"]["podSelector"]["matchLabels"].get(COMPONENT, "")
        for rule in policy["spec"].get(side) or []:
            for peer in rule.get("from" if side == "ingress" else "to") or []:
                other = peer.get("podSelector", {}).get("matchLabels", {}).get(COMPONENT)
                if other is None or "namespaceSelector" in peer:
                    continue
                for entry in rule["ports"]:
                    for port in range(entry["port"], entry.get("endPort", entry["port"]) + 1):
                        yield (own, other, port) if side == "egress" else (other, own, port)


def _everybody_reaches(policies: list[Object], component: str) -> bool:
    return any(
        "from" not in rule
        for policy in policies
        if policy["spec"]["podSelector"]["matchLabels"].get(COMPONENT) == component
        for rule in policy["spec"].get("ingress") or []
    )


def _further_frames(found: set[Edge]) -> set[Edge]:
    """The frames of further tokenizer processes."""
    return {edge for edge in found if edge[:2] == ("gateway", "tokenizer") and edge[2] > 10000}


RULES = (denied_by_default, edges)
