"""What the documents tell people to type to Helm, and the values that they name, exist."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests import documents
from tests.helm.rendering import CHART, run_helm
from tools import chart_docs
from tools.chart_docs import rows

DOCUMENTS = (documents.ROOT / "docs" / "operations.md", CHART / "README.md")
# What readers put in for themselves.
THEIRS = {"my-values.yaml": "helm/tokenfleet/values-cpu.yaml"}
_VALUE = re.compile(r"(?P<key>[a-z][A-Za-z]*(\.[A-Za-z_]+|\[\])+)(=\S*)?")


def _helm_lines(document: Path) -> Iterator[tuple[str, list[str]]]:
    for place, line in documents.mentioned_commands(document):
        command = line.partition(" | ")[0]
        if command.startswith("helm ") and "/" not in command.split()[1]:
            yield place, shlex.split(command)[1:]


@cache
def _help(subcommand: str) -> str:
    return run_helm(subcommand, "--help").out


@cache
def _keys() -> set[str]:
    whole = chart_docs.schema()
    return {row[0] for key, node in whole["properties"].items() for row in rows(whole, node, None, key)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_exists(document: Path) -> None:
    lines = list(_helm_lines(document))
    assert lines
    for place, (subcommand, *arguments) in lines:
        for flag in (each.partition("=")[0] for each in arguments if each.startswith("-")):
            assert re.search(rf"(^|\s|,){re.escape(flag)}\b", _help(subcommand)), f"{place}: {flag}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_installation_renders(document: Path) -> None:
    for place, (subcommand, *arguments) in _helm_lines(document):
        if subcommand not in {"install", "upgrade", "template"} or len(arguments) < 2:
            continue
        flags: list[str] = []
        for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
            if flag in {"-f", "--values"}:
                flags += [flag, str(documents.ROOT / THEIRS.get(value, value))]
            elif flag == "--set":
                flags += [flag, value]
        if "--reuse-values" in arguments:
            flags += ["--values", "values-cpu.yaml"]
        ended = run_helm("template", "fleet", ".", *flags)
        assert ended.code == 0, f"{place}: {ended.err}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_value_that_is_named_exists(document: Path) -> None:
    found = 0
    text = document.read_text(encoding="utf-8").partition(chart_docs.BEGIN)[0]
    for code in re.findall(r"`([^`\n]+)`", text):
        match = _VALUE.fullmatch(code)
        if match is None or match["key"].endswith((".md", ".yaml", ".jsonl", ".crt", ".key", ".internal")):
            continue
        found += 1
        assert match["key"] in _keys() or match["key"].startswith("extraEnv."), f"{document.name}: {code}"
    assert found >= 3
