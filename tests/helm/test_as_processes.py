"""The chart's environments, ports, probes and Services make a fleet that answers: every service, for real."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny_model
from tests.certificates import Authority
from tests.helm.cluster_of_processes import COMPONENT, running, until_probed
from tests.helm.rendering import Object, of_kind, template
from tests.helm.test_request import ask

ROLES = {
    "gateway": "gateway",
    "tokenizer": "tokenizer",
    "router": "router",
    "modelLoader": "model-loader",
    "worker": "worker",
}
TLS = {
    "edge": {"secretName": "edge"},
    "peers": {"enabled": True, "domain": "fleet.example.com", "secretNames": dict.fromkeys(ROLES, "peers")},
}


def _rendered(folder: Path, **values: Any) -> list[Object]:
    """A fleet with one simulated worker and a model of a few kilobytes, from a file."""
    source = f"file://{tiny_model.write_gguf(folder / 'model.gguf')}"
    model = {"name": "tiny", "source": source, "context_length": 512, "policy": "warm"}
    known = {
        "store": {"mode": "none"},
        "catalog": {"models": [{**model, "engines": [{"engine": "sim"}]}]},
        "workerPools": {"cpu": {"engine": "sim"}},
    }
    file = folder / "values.json"
    file.write_text(json.dumps(known | values), encoding="utf-8")
    ended = template("--values", str(file))
    assert ended.code == 0, ended.err
    return [one for one in yaml.safe_load_all(ended.out) if one]


def _mount(folder: Path, component: str, path: str, content: bytes) -> None:
    file = folder / component / "etc" / "tokenfleet" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _mount_catalog(folder: Path, all_: list[Object]) -> None:
    (catalog,) = of_kind(all_, "ConfigMap")
    _mount(folder, "model-loader", "catalog/catalog.yaml", catalog["data"]["catalog.yaml"].encode())


def _mount_certificates(folder: Path, ours: Authority) -> None:
    names = {role: ("peer-tls", f"{role}.fleet.example.com") for role in ROLES.values()}
    for component, (mount, name) in [*names.items(), ("gateway", ("edge-tls", "localhost"))]:
        pair = ours.write(folder, f"{component}-{mount}", name)
        for key, file in zip(("tls.crt", "tls.key"), pair, strict=True):
            _mount(folder, component, f"{mount}/{key}", file.read_bytes())
        _mount(folder, component, f"{mount}/ca.crt", ours.pem)


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 for loopback")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_rendered_fleet_answers(tls: bool, tmp_path: Path) -> None:
    all_ = _rendered(tmp_path, **({"tls": TLS} if tls else {}))
    _mount_catalog(tmp_path, all_)
    if tls:
        _mount_certificates(tmp_path, Authority())
    async with running(all_, tmp_path) as fleet:
        gateway = fleet["gateway"]
        assert gateway.labels[COMPONENT] == "gateway"
        ports = {port["name"]: port["containerPort"] for port in gateway.container["ports"]}
        url = f"{'https' if tls else 'http'}://{gateway.address}:{ports['http']}"
        code, said = await ask(url, all_)
        assert code == 0, said
        assert "asking tiny" in said
        await until_probed(fleet["worker"], "readinessProbe")
        zones = await gateway.process.logged("own zone")
        assert zones[0]["zone"] == "zone-a"
