"""Writes what the chart says about its values: values.schema.json, and the tables in its README.

A setting of a service is described where the service reads it, and a value of the chart in
helm/values.schema.yaml; both files here are made from those, so that nothing is said twice and nothing that
exists goes unsaid. `python -m tools.chart_docs` writes them, `--check` fails when they are stale.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tokenfleet.gateway.settings import GatewaySettings
from tokenfleet.model_loader.settings import ModelLoaderSettings
from tokenfleet.router.settings import RouterSettings
from tokenfleet.runtime.settings import ServiceSettings
from tokenfleet.tokenizer.settings import TokenizerSettings
from tokenfleet.worker.settings import WorkerSettings

Schema = dict[str, Any]

HELM = Path(__file__).resolve().parents[1] / "helm"
CHART = HELM / "tokenfleet"
BEGIN = "<!-- values: begin -->"
END = "<!-- values: end -->"

SETTINGS: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "tokenizer": TokenizerSettings,
    "router": RouterSettings,
    "model-loader": ModelLoaderSettings,
    "worker": WorkerSettings,
}

# What the chart itself decides, since it follows from how the pods are put together.
_DECIDED = """
    config listen advertise_host metrics_listen log_format grace_s frames_port reflection
    tls_cert tls_key tls_ca tls_domain
"""
_DECIDED_EDGE = "http_listen api_keys_file edge_tls_cert edge_tls_key edge_tls_client_ca"
DECIDED = {
    "gateway": f"{_DECIDED} {_DECIDED_EDGE} tokenizers routers loader zone".split(),
    "tokenizer": f"{_DECIDED} loader cache_dir".split(),
    "router": f"{_DECIDED} workers loader".split(),
    "model-loader": f"{_DECIDED} catalog workers store".split(),
    "worker": f"{_DECIDED} name zone engines cache_dir".split(),
}

_KEPT = (
    "type enum pattern minimum maximum exclusiveMinimum exclusiveMaximum items description default".split()
)


def schema() -> Schema:
    """The whole schema, with the services' settings in it."""
    source = yaml.safe_load((HELM / "values.schema.yaml").read_text(encoding="utf-8"))
    assert isinstance(source, dict)
    whole: Schema = _with_settings(source)
    return whole


def _with_settings(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_settings(each) for each in node]
    if not isinstance(node, dict):
        return node
    if "x-settings" in node:
        return settings_schema(node["x-settings"])
    return {key: _with_settings(value) for key, value in node.items()}


def settings_schema(service: str) -> Schema:
    """The settings of a service that its users may choose, under the service's own names."""
    model = SETTINGS[service].model_json_schema()
    return {
        "type": "object",
        "additionalProperties": False,
        "description": "Settings of the service, under its own names; what is left out has its default.",
        "properties": {
            name: _plain(rule) for name, rule in model["properties"].items() if name not in DECIDED[service]
        },
    }


def _plain(rule: Schema) -> Schema:
    """One setting's rule, without what only pydantic needs."""
    alternatives = [each for each in rule.get("anyOf", ()) if each.get("type") != "null"]
    if alternatives:
        rule = {**rule, **alternatives[0]}
    plain = {key: rule[key] for key in _KEPT if rule.get(key) is not None}
    plain["description"] = _sentence(plain["description"])
    return plain


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def resolved(whole: Schema, node: Schema) -> Schema:
    """The node with what its `$ref` says; its own words go before those."""
    while "$ref" in node:
        target = whole["$defs"][node["$ref"].rpartition("/")[2]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    return node


def rows(whole: Schema, node: Schema, values: Any, path: str) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and description of the node and of everything below it."""
    node = resolved(whole, node)
    yield path, _type(whole, node), _default(node, values), node.get("description", "")
    if path == "workerPools":
        entry = resolved(whole, next(iter(node["patternProperties"].values())))
        engine = resolved(whole, entry["properties"]["engine"])
        yield "workerPools.NAME", "object", "", entry["description"]
        yield "workerPools.NAME.engine", _type(whole, engine), "", engine["description"]
        yield from rows(whole, entry["properties"]["engineServer"], None, "workerPools.NAME.engineServer")
        return
    inner = node.get("properties")
    place = path
    if inner is None and isinstance(node.get("items"), Mapping):
        inner, place = resolved(whole, node["items"]).get("properties"), f"{path}[]"
        values = None
    for key, child in (inner or {}).items():
        below = values.get(key) if isinstance(values, Mapping) else None
        yield from rows(whole, child, below, f"{place}.{key}")


def _type(whole: Schema, node: Schema) -> str:
    if "enum" in node:
        return " \\| ".join(f"`{each}`" for each in node["enum"])
    kinds = node.get("type", "any")
    text = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    if isinstance(node.get("items"), Mapping):
        text = f"{text} of {resolved(whole, node['items']).get('type', 'any')}"
    return text


def _default(node: Schema, values: Any) -> str:
    value = values if values is not None else node.get("default")
    if value is None or isinstance(value, Mapping) or (isinstance(value, list) and value):
        return ""
    return f"`{json.dumps(value)}`"


def tables() -> str:
    """One table for each of the top-level keys that has keys itself, and one for the others."""
    whole = schema()
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    simple: list[tuple[str, str, str, str]] = []
    parts: list[str] = []
    for key, node in whole["properties"].items():
        found = list(rows(whole, node, values.get(key), key))
        if len(found) == 1:
            simple += found
        else:
            parts.append(f"### {key}\n\n{found[0][3]}\n\n{_table(found[1:])}")
    return "\n\n".join(["### For everything", _table(simple), *parts])


def _table(found: list[tuple[str, str, str, str]]) -> str:
    lines = ["| key | type | default | |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{key}` | {kind} | {default} | {text.replace('|', chr(92) + '|')} |"
        for key, kind, default, text in found
    ]
    return "\n".join(lines)


def written() -> dict[Path, str]:
    """The files that are made, and what they have to say."""
    readme = CHART / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    return {
        CHART / "values.schema.json": json.dumps(copy.deepcopy(schema()), indent=2, ensure_ascii=False)
        + "\n",
        readme: f"{before}{BEGIN}\n{tables()}\n{END}{after}",
    }


def main() -> None:
    stale = [
        (path, text)
        for path, text in written().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" not in sys.argv[1:]:
        for path, text in stale:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.name}")
    elif stale:
        names = " and ".join(path.name for path, _ in stale)
        sys.exit(f"{names} of the chart are stale: run `make helm-docs` and commit the result")


if __name__ == "__main__":
    main()
