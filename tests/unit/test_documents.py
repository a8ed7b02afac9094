"""What can be said of documents without running anything: that what they name exists, and is found."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests import documents
from tokenfleet.cli.app import app

DOCUMENTS = documents.documents()
TOKENFLEET = typer.main.get_command(app)


HELP = frozenset({"-h", "--help"})


def unknown_words(line: str, command: Any = TOKENFLEET) -> list[str]:
    """Subcommands and flags in a line of `tokenfleet` that it does not have."""
    found = re.search(r"(?:^|[\s/])tokenfleet((?:\s+[^|<>&;#]+)?)", line)
    if not found:
        return []
    unknown: list[str] = []
    words = _words(found[1])
    for before, word in zip(["", *words], words, strict=False):
        if hasattr(command, "commands"):
            if word in command.commands:
                command = command.commands[word]
            elif word.startswith("-"):
                known = _options(command) if getattr(command, "invoke_without_command", False) else HELP
                unknown += [] if word.partition("=")[0] in known else [word]
            elif not before.startswith("--"):  # what stands behind an option is its value
                return [*unknown, word]
        elif re.match(r"--?[a-z]", word) and word.partition("=")[0] not in _options(command):
            unknown.append(word)
    return unknown


def _all_commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for each, inner in getattr(command, "commands", {}).items():
        yield from _all_commands(f"{name} {each}", inner)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # cut within quotes
        return text.split()


def _options(command: Any) -> set[str]:
    return {*HELP, *(option for each in command.params for option in each.opts)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_is_a_command_or_plainly_none(document: Path) -> None:
    assert documents.faults(document) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_target_option_and_path_exists(document: Path) -> None:
    known = documents.known_targets()
    wrong = []
    for place, line in documents.mentioned_commands(document):
        wrong += [f"{place}: make {each}" for each in documents.make_targets(line) if each not in known]
        wrong += [f"{place}: {each} is not there" for each in documents.missing_paths(line)]
        if re.match(r"(\S*/)?tokenfleet(\s|$)", line):
            wrong += [f"{place}: {line!r} has no {each!r}" for each in unknown_words(line)]
    assert wrong == []


@pytest.mark.parametrize("path", ["config/catalog.yaml", "Makefile"])
def test_help_texts_name_real_options_too(path: str) -> None:
    text = (documents.ROOT / path).read_text(encoding="utf-8")
    lines = re.findall(r"`(tokenfleet [^`]+)`", text)
    assert [line for line in lines if unknown_words(line)] == []


def test_every_help_text_gives_examples_that_exist() -> None:
    """The examples in `--help` are documentation like any other."""
    for name, command in _all_commands("tokenfleet", TOKENFLEET):
        examples = [line for line in (command.help or "").splitlines() if line.startswith("  tokenfleet")]
        commands = [re.split(r"   +", line.strip())[0] for line in examples]
        assert [command for command in commands if unknown_words(command)] == [], name


def test_there_is_something_to_run() -> None:
    """Should the rules and the documents drift apart, nothing would be run and all would seem well."""
    run = [block.language for block in documents.blocks(documents.ROOT / "README.md") if block.is_run]
    assert run.count("python") >= 2
    assert run.count("sh") >= 2
    assert "console" in run
    assert len(documents.example_scripts()) >= 3


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    path = tmp_path / "some.md"
    path.write_text(text)
    return path


def test_blocks_are_found_with_their_remarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(
        tmp_path,
        monkeypatch,
        "<!-- not run: needs a\n     cluster -->\n```sh\nhelm install\n```\n\n"
        "<!-- prints: Paris -->\n\n```python\nprint(1)\n```\n\ntext\n\n```sh\nmake run\ncurl x\n```\n"
        "<!-- not run: far away -->\n\ntext\n\n- ```sh\n  make run\n  ```\n",
    )
    cluster, python, curl, listed = documents.blocks(path)
    assert (cluster.is_run, cluster.reason, cluster.place) == (False, "needs a cluster", "some.md:3")
    assert (python.is_run, python.prints) == (True, "Paris")
    assert (curl.is_run, curl.commands, curl.reason) == (True, "curl x", "")
    assert (listed.is_run, listed.commands, listed.reason) == (False, "", "")


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("```\nmake run\n```\n", "not as ''"),
        ("```bash\nmake run\n```\n", "not as 'bash'"),
        ("```text\ncurl http://x\n```\n", "looks like a command"),
        ("text\n\n    .venv/bin/tokenfleet up\n", "looks like a command in an indented block"),
    ],
)
def test_hidden_commands_are_found(
    text: str, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = documents.faults(written(tmp_path, monkeypatch, text))
    assert finding in found


def test_what_needs_a_cluster_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, monkeypatch, "```sh\nhelm install x \\\n  -f helm/gone.yaml\n```\n")
    (block,) = documents.blocks(path)
    assert not block.is_run
    (mentioned,) = documents.mentioned_commands(path)
    assert documents.missing_paths(mentioned[1]) == ["helm/gone.yaml"]


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        (".venv/bin/tokenfleet up --port 8090", []),
        ("tokenfleet up --prot 8090", ["--prot"]),
        ("tokenfleet dance --fast", ["dance"]),
        ('tokenfleet chat -t 0 --json "a --b" | jq .x --raw', []),
        ("tokenfleet", []),
    ],
)
def test_unknown_options_are_found(line: str, unknown: list[str]) -> None:
    assert unknown_words(line) == unknown


def test_targets_of_make_are_found() -> None:
    assert documents.make_targets("make -k lint test PORT=8090  # all of it") == ["lint", "test"]
    assert documents.make_targets("cmake lint") == []
    assert {"run", "test", "help"} <= documents.known_targets()
