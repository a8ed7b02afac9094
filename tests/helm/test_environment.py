"""Each container's environment, handed to the settings model of the service that will read it.

A variable that is no setting stops a service when it starts, which no check of manifests can see.
"""

import os
from collections.abc import Iterator
from typing import get_args

import pytest

from tests.helm.rendering import VALUES, Object, containers, label, objects, pods
from tokenfleet.model_loader.catalog import EngineName
from tokenfleet.runtime.settings import load_settings, split_address
from tokenfleet.worker.engines.registry import ENGINES
from tools.chart_docs import DECIDED, SETTINGS

# What the kubelet and the API server put in at run time.
FIELDS = {"status.podIP": "10.1.2.3", "metadata.labels['topology.kubernetes.io/zone']": "zone-a"}
ENGINES_VARIABLE = "TOKENFLEET_WORKER_ENGINES"
SECRETS = {"fleet-store": "redis://user:secret@store.example.com:6379/0"}


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("TOKENFLEET"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("name", VALUES)
def test_services_accept_their_environment(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    services = list(_services(objects(name)))
    assert {service for _, service, _ in services} >= {"gateway", "tokenizer", "router", "model-loader"}
    for where, service, container in services:
        with monkeypatch.context() as patch:
            for variable, value in _environment(container).items():
                patch.setenv(variable, _existing_engine(value) if variable == ENGINES_VARIABLE else value)
            try:
                settings = load_settings(SETTINGS[service], [])
            except SystemExit:
                pytest.fail(f"{where}: {capsys.readouterr().err}")
        _check_ports(where, container, settings.listen, settings.metrics_listen)


def test_a_variable_that_is_no_setting_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENFLEET_ROUTER_QUEU_LIMIT", "1")
    with pytest.raises(SystemExit):
        load_settings(SETTINGS["router"], [])
    assert "TOKENFLEET_ROUTER_QUEU_LIMIT" in capsys.readouterr().err


def test_numbers_arrive_as_they_were_written() -> None:
    """Helm holds every number as floating point; a million must not become 1e+06."""
    rendered: dict[str, str] = {}
    for _, _, container in _services(objects("every-branch")):
        rendered |= _environment(container)
    assert rendered["TOKENFLEET_GATEWAY_MAX_BODY_BYTES"] == "16777216"
    assert rendered["TOKENFLEET_GATEWAY_REQUEST_TIMEOUT_S"] == "1200.5"
    assert rendered["TOKENFLEET_ROUTER_QUEUE_LIMIT"] == "1000000"
    assert rendered["TOKENFLEET_GATEWAY_FRAMES"] == "false"
    assert rendered["TOKENFLEET_GATEWAY_ALLOWED_ORIGINS"] == "localhost,https://chat.example.com"


@pytest.mark.parametrize("service", SETTINGS)
def test_the_chart_decides_what_is_no_value(service: str) -> None:
    """What users cannot set is set by the chart, but for what makes no sense in a pod."""
    senseless = {"config", "reflection", "advertise_host", "name"}
    if service in {"gateway", "model-loader"}:
        senseless.add("frames_port")  # nobody opens a link to them
    known = set(SETTINGS[service].model_fields)
    wanted = (set(DECIDED[service]) & known) - senseless
    prefix = SETTINGS[service].model_config["env_prefix"]
    told = {
        name.removeprefix(prefix).lower()
        for rendering in ("every-branch", "cpu")
        for _, each, container in _services(objects(rendering))
        if each == service
        for name in _environment(container)
    }
    assert wanted <= told


def _existing_engine(name: str) -> str:
    """values-gpu.yaml may be ahead of the engines that workers have; all else in it is checked."""
    assert name in get_args(EngineName)
    return name if name in ENGINES else "sim"


def _services(all_: list[Object]) -> Iterator[tuple[str, str, Object]]:
    """The containers that run a service of the fleet, and which."""
    for one, labels, spec in pods(all_):
        for container in containers(spec):
            component = labels["app.kubernetes.io/component"]
            if component in SETTINGS and container["name"] != "engine-server":
                yield label(one), component, container


def _environment(container: Object) -> dict[str, str]:
    found: dict[str, str] = {}
    for variable in container["env"]:
        source = variable.get("valueFrom")
        if source is None:
            assert isinstance(variable["value"], str), variable
            found[variable["name"]] = variable["value"]
        elif "fieldRef" in source:
            found[variable["name"]] = FIELDS[source["fieldRef"]["fieldPath"]]
        elif "resourceFieldRef" in source:
            assert source["resourceFieldRef"]["resource"] == "limits.cpu"
            found[variable["name"]] = "2"
        else:
            found[variable["name"]] = SECRETS[source["secretKeyRef"]["name"]]
    return found


def _check_ports(where: str, container: Object, listen: str, metrics_listen: str) -> None:
    """The ports that the service opens are those that the container declares."""
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["grpc"] == split_address(listen)[1], where
    assert ports["metrics"] == split_address(metrics_listen)[1], where
