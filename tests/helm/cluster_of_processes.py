"""The chart's pods as processes of this machine: the rendered environments and probes, and no cluster.

Each Deployment is one process with a loopback address of its own, so that all keep the ports that the chart
gives them. EndpointSlices come from an API server that serves nothing else. What only a kubelet could do,
mounts and addresses, is put in by replacing text in the environment.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.contract.kube_api import KubeApi, endpoint, kube_api
from tests.contract.service_process import ServiceProcess, launch
from tests.helm.rendering import Object, containers, of_kind, pods, selects
from tokenfleet.runtime.grpc_host import open_channel

COMPONENT = "app.kubernetes.io/component"
ZONE = "metadata.labels['topology.kubernetes.io/zone']"
PATIENCE_S = 90


@dataclass(slots=True)
class Pod:
    """One process and what was said of it."""

    component: str
    labels: dict[str, str]
    container: Object
    address: str
    process: ServiceProcess


@asynccontextmanager
async def running(all_: list[Object], folder: Path) -> AsyncIterator[dict[str, Pod]]:
    """All of the release's services, ready by their own probes; by component."""
    network = f"127.{random.randint(16, 250)}.{random.randint(0, 250)}"
    deployments = [(labels, spec) for one, labels, spec in pods(all_) if one["kind"] == "Deployment"]
    addresses = {
        labels[COMPONENT]: f"{network}.{number}" for number, (labels, _) in enumerate(deployments, 1)
    }
    with kube_api(folder / "account") as api:
        _list_endpoints(api, all_, deployments, addresses)
        async with AsyncExitStack() as stack:
            started: dict[str, Pod] = {}
            for labels, spec in deployments:
                component = labels[COMPONENT]
                container = containers(spec)[0]
                environment = _environment(container, component, addresses, folder)
                process = await launch(
                    component.replace("-", "_"), env=environment | {"KUBECONFIG": str(api.kubeconfig())}
                )
                stack.push_async_callback(_ended, process)
                started[component] = Pod(component, labels, container, addresses[component], process)
            for pod in started.values():
                await until_probed(pod, "startupProbe")
                await until_probed(pod, "livenessProbe")
            for pod in started.values():
                await until_probed(pod, "readinessProbe")
            yield started


async def until_probed(pod: Pod, kind: str) -> None:
    """Asks as the kubelet would, until the answer is yes."""
    probe = pod.container[kind]
    async with asyncio.timeout(PATIENCE_S):
        while not await _probe(pod, probe):
            assert pod.process.process.returncode is None, (pod.component, pod.process.log)
            await asyncio.sleep(0.05)


async def _probe(pod: Pod, probe: Object) -> bool:
    if "httpGet" in probe:
        ports = {port["name"]: port["containerPort"] for port in pod.container["ports"]}
        url = f"http://{pod.address}:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(url, timeout=probe["timeoutSeconds"])).status_code == 200
        except httpx.HTTPError:
            return False
    request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
    async with open_channel(f"{pod.address}:{probe['grpc']['port']}", pod.component) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(request, timeout=probe["timeoutSeconds"])
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return False
            raise
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _list_endpoints(
    api: KubeApi,
    all_: list[Object],
    deployments: list[tuple[dict[str, str], Object]],
    addresses: dict[str, str],
) -> None:
    """What the endpoint controller makes of the Services."""
    for service in of_kind(all_, "Service"):
        port = next(each for each in service["spec"]["ports"] if each["name"] == "grpc")
        for labels, spec in deployments:
            if selects(service["spec"]["selector"], labels):
                name = service["metadata"]["name"]
                offered = {each["name"]: each["containerPort"] for each in containers(spec)[0]["ports"]}
                # a pod's host is called like the pod
                one = endpoint(addresses[labels[COMPONENT]], socket.gethostname(), "zone-a")
                api.put(name, one, service=name, port=offered[port["targetPort"]])


def _environment(
    container: Object, component: str, addresses: dict[str, str], folder: Path
) -> dict[str, str]:
    """The container's, with the kubelet's part done."""
    found: dict[str, str] = {}
    fields = {"status.podIP": addresses[component], ZONE: "zone-a"}
    for variable in container["env"]:
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            found[variable["name"]] = fields[source["fieldRef"]["fieldPath"]]
        elif "resourceFieldRef" in source:
            found[variable["name"]] = "1"
        else:
            found[variable["name"]] = _at_home(variable["value"], component, addresses, folder)
    return found


def _at_home(value: str, component: str, addresses: dict[str, str], folder: Path) -> str:
    """Paths of mounts below the folder, names of Services as addresses, all interfaces as the pod's one."""
    own = folder / component
    value = value.replace("0.0.0.0", addresses[component])
    for mount in ("/etc/tokenfleet", "/var/cache/tokenfleet", "/tmp"):
        if value == mount or value.startswith(f"{mount}/"):
            (own / "tmp").mkdir(parents=True, exist_ok=True)
            return f"{own}{value}"
    if value.startswith("kubernetes://"):
        name, _, port = value.removeprefix("kubernetes://").partition(":")
        return f"kubernetes://{name}.fleet" + (f":{port}" if port else "")
    host, _, port = value.rpartition(":")
    for other, address in addresses.items():
        if host.endswith(f"-{other}") and port.isdigit():
            return f"{address}:{port}"
    return value


async def _ended(process: ServiceProcess) -> None:
    code = await process.stop()
    assert code == 0, process.log[-5:]
