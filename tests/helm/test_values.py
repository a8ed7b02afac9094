"""The schema of the values: closed, described, fresh, and each rule told with the key that broke it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tests.helm.bad_values import Bad, all_bad, batches, document
from tests.helm.rendering import CHART, VALUES, Ended, objects, of_kind, template
from tokenfleet.model_loader.catalog import EngineConfig, EngineName, ModelEntry, read_catalog
from tools import chart_docs
from tools.chart_docs import Schema, resolved

CASES = all_bad()
# What an engine is given is the engine's own affair, and what other charts share is theirs.
OPEN = {
    "catalog.models[].engines[].arguments",
    "global",
    "workerDefaults.settings.engine_arguments",
    "workerPools.NAME.settings.engine_arguments",
}


def test_generated_files_are_fresh() -> None:
    for path, text in chart_docs.written().items():
        assert path.read_text(encoding="utf-8") == text, "run `make helm-docs` and commit the result"


def test_every_value_is_described() -> None:
    assert not [path for path, node in _nodes() if not node.get("description")]


def test_every_object_is_closed() -> None:
    opened = {
        path
        for path, node in _nodes()
        if node.get("type") == "object" and node.get("additionalProperties", True) is True
    }
    assert opened == OPEN


def test_the_readme_has_every_value() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    for path, _ in _nodes():
        if not path.startswith("workerPools.NAME."):
            assert f"`{path}`" in readme or f"### {path}\n" in readme, path


def test_catalog_entries_are_what_the_model_loader_reads() -> None:
    whole = chart_docs.schema()
    entry = whole["properties"]["catalog"]["properties"]["models"]["items"]
    assert set(entry["properties"]) == set(ModelEntry.model_fields)
    assert set(entry["required"]) == {n for n, f in ModelEntry.model_fields.items() if f.is_required()}
    engine = entry["properties"]["engines"]["items"]
    assert set(engine["properties"]) == set(EngineConfig.model_fields)
    assert whole["$defs"]["engine"]["enum"] == list(get_args(EngineName))


@pytest.mark.parametrize("name", VALUES)
def test_the_model_loader_accepts_the_catalog(name: str, tmp_path: Path) -> None:
    maps = [one for one in of_kind(objects(name), "ConfigMap") if "catalog.yaml" in one["data"]]
    assert len(maps) == (0 if name == "every-branch" else 1)
    for one in maps:
        file = tmp_path / "catalog.yaml"
        file.write_text(one["data"]["catalog.yaml"], encoding="utf-8")
        assert read_catalog(file).entries


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Every case by its name, and how the run of Helm ended that it was part of."""
    file = tmp_path_factory.mktemp("values") / "values.json"
    ended: dict[str, Ended] = {}
    for run in batches(CASES):
        file.write_text(json.dumps(document(run)), encoding="utf-8")
        ended |= dict.fromkeys(map(str, run), template("--values", str(file)))
    return ended


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_bad_value_is_refused_by_name(case: Bad, refusals: dict[str, Ended]) -> None:
    ended = refusals[str(case)]
    assert ended.code != 0
    place = "/" + "/".join(map(str, case.place)) if case.place else ""
    lines = [line for line in ended.err.splitlines() if f"at '{place}'" in line]
    assert any(case.key in line for line in lines), ended.err


def _nodes() -> Iterator[tuple[str, Schema]]:
    """Every value of the schema but the top, by its path in the README."""
    whole = chart_docs.schema()

    def below(node: Schema, path: str) -> Iterator[tuple[str, Schema]]:
        node = resolved(whole, node)
        yield path, node
        for key, child in node.get("properties", {}).items():
            yield from below(child, f"{path}.{key}")
        items = node.get("items")
        if isinstance(items, dict) and "properties" in resolved(whole, items):
            for key, child in resolved(whole, items)["properties"].items():
                yield from below(child, f"{path}[].{key}")
        for further in node.get("patternProperties", {}).values():
            if "properties" in resolved(whole, further):
                yield from below(further, f"{path}.NAME")

    for key, child in whole["properties"].items():
        yield from below(child, key)


ENGINE_SERVER: dict[str, Any] = {
    "image": "docker.io/vllm/vllm-openai:v0.33.0",
    "args": ["--grpc"],
    "port": 50051,
    "dialect": "vllm",
    "startupSeconds": 60,
    "temporaryFiles": "1Gi",
    "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": 1, "memory": "1Gi"}},
}
# What takes two values to see, and is told by the templates.
COMBINATIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"catalog": {"models": []}}, ["catalog.models"]),
    ({"store": {"mode": "external"}}, ["store.external.secretName"]),
    (
        {
            "gateway": {"autoscaling": {"enabled": True, "minReplicas": 11}},
            "tokenizer": {"autoscaling": {"enabled": True, "maxReplicas": 1}},
        },
        ["gateway.autoscaling.maxReplicas", "tokenizer.autoscaling.maxReplicas"],
    ),
    (
        {"workerPools": {"a": {"engine": "sim", "modelCache": {"type": "hostPath"}}}},
        ["workerPools.a.modelCache.hostPath"],
    ),
    (
        {"workerPools": {"a": {"engine": "sim", "modelCache": {"type": "persistentVolumeClaim"}}}},
        ["workerPools.a.modelCache.claimName"],
    ),
    (
        {"workerPools": {"a": {"engine": "vllm", "engineServer": ENGINE_SERVER}}},
        ["workerPools.a.engineServer"],
    ),
    ({"tokenizer": {"modelCache": {"type": "hostPath"}}}, ["tokenizer.modelCache.hostPath"]),
    (
        {
            "router": {"extraEnv": {"TOKENFLEET_ROUTER_SEED": "1"}},
            "workerPools": {"a": {"engine": "sim", "extraEnv": {"TOKENFLEET_CACHE": "/x"}}},
        },
        ["router.extraEnv.TOKENFLEET_ROUTER_SEED", "workerPools.a.extraEnv.TOKENFLEET_CACHE"],
    ),
    (
        {"tls": {"peers": {"enabled": True, "secretNames": {"gateway": "g", "router": "r"}}}},
        ["tls.peers.secretNames.modelLoader", "tls.peers.secretNames.worker"],
    ),
    ({"tls": {"edge": {"clientCertificates": True}}}, ["tls.edge.secretName"]),
    ({"modelVolumes": [{"name": "m", "mountPath": "/m"}]}, ["modelVolumes: m"]),
    (
        {"modelVolumes": [{"name": "m", "mountPath": "/m", "claimName": "c", "hostPath": "/h"}]},
        ["modelVolumes: m"],
    ),
]


@pytest.mark.parametrize(("values", "told"), COMBINATIONS, ids=[told[0] for _, told in COMBINATIONS])
def test_a_bad_combination_is_refused_by_name(
    values: dict[str, Any], told: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    ended = template("--values", str(file))
    assert ended.code != 0
    for key in told:
        assert key in ended.err
