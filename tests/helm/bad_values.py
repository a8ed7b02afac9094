"""One bad value for each rule of the chart's schema, made from the schema itself.

Helm tells all problems of a run at once, so that many bad values share a run: as many as do not lie in each
other's way.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tools.chart_docs import Schema, resolved, schema

Path = tuple[str | int, ...]

WRONG_TYPE: dict[str, Any] = {
    "string": {"a": "mapping"},
    "integer": "many",
    "number": "many",
    "boolean": "perhaps",
    "array": "one",
    "object": "none",
}
WRONG_TEXT = ("!", "-", " ", "x y", "")
POOL = "pool"


@dataclass(frozen=True, slots=True)
class Bad:
    """A value that breaks one rule; where Helm has to see it, and the key when that is not the place."""

    rule: str
    path: Path
    value: Any
    place: Path
    key: str = ""

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))}: {self.rule}"


def all_bad() -> list[Bad]:
    whole = schema()
    return list(_below(whole, whole, ()))


def _below(whole: Schema, node: Schema, path: Path) -> Iterator[Bad]:
    node = resolved(whole, node)
    if path:
        yield from _values(node, path)
    yield from _keys(node, path)
    for key, child in node.get("properties", {}).items():
        yield from _below(whole, child, (*path, key))
    if isinstance(items := node.get("items"), dict):
        yield from _below(whole, items, (*path, 0))
    for further in (*node.get("patternProperties", {}).values(), node.get("additionalProperties")):
        if isinstance(further, dict):
            yield from _below(whole, further, (*path, POOL))


def _values(node: Schema, path: Path) -> Iterator[Bad]:
    kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
    wrong = {"a": "mapping"} if "string" in kinds else WRONG_TYPE[kinds[0]]
    yield Bad("type", path, wrong, path)
    if "enum" in node:
        yield Bad("enum", path, "no-such-choice", path)
    if "pattern" in node:
        yield Bad("pattern", path, _against(node["pattern"]), path)
    for rule, step in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 0), ("exclusiveMaximum", 0)):
        if rule in node:
            yield Bad(rule, path, node[rule] + step, path)
    if "maxLength" in node:
        yield Bad("maxLength", path, "a" * (node["maxLength"] + 1), path)
    if "minLength" in node:
        yield Bad("minLength", path, "", path)
    if "minItems" in node:
        yield Bad("minItems", path, [], path)
    if "uniqueItems" in node:
        yield Bad("uniqueItems", path, ["zone-a", "zone-a"], path)


def _keys(node: Schema, path: Path) -> Iterator[Bad]:
    if node.get("additionalProperties") is False:
        key = "NOT A NAME" if "patternProperties" in node else "noSuchKey"
        yield Bad("unknown key", (*path, key), "x", path, key)
    for key in node.get("required", ()):
        # Helm drops a default whose value is null
        yield Bad("required", (*path, key), None, path, key)


def _against(pattern: str) -> str:
    return next(text for text in WRONG_TEXT if not re.search(pattern, text))


def batches(cases: list[Bad]) -> list[list[Bad]]:
    """The cases, in as few runs as they fit into without one hiding another."""
    runs: list[list[Bad]] = []
    for case in cases:
        for run in runs:
            if not any(_collide(case, other) for other in run):
                run.append(case)
                break
        else:
            runs.append([case])
    return runs


def _collide(one: Bad, other: Bad) -> bool:
    """Whether one value lies within the other's."""
    shorter = min(len(one.path), len(other.path))
    return one.path[:shorter] == other.path[:shorter]


def document(run: list[Bad]) -> dict[str, Any]:
    """The values of one run."""
    root: dict[str, Any] = {}
    for case in run:
        parent = _parent(root, case.path)
        # where there is no default to drop, it is enough to leave the key out
        if case.rule != "required" or not (POOL in case.path or 0 in case.path):
            parent[case.path[-1]] = copy.deepcopy(case.value)
    return root


def _parent(root: Any, path: Path) -> Any:
    """What holds the path's last step; made, with all that is above it, where it is not there."""
    node = root
    for here, next_ in pairwise(path):
        empty: Any = [None] if isinstance(next_, int) else {}
        if isinstance(here, int):
            node[here] = empty if node[here] is None else node[here]
        else:
            node.setdefault(here, empty)
        node = node[here]
    return node
