"""The commands that the documents tell people to type, and by what rules they are tested.

- A block fenced as `sh` is run by a shell, one fenced as `python` by Python, both against a local fleet.
- Of a block fenced as `console`, the lines behind `$ ` are run on a terminal, and the lines behind `> ` that
  follow are typed into what they started; the rest shows what comes out.
- Blocks of any other name (`text`, `yaml`, …) hold no commands.
- `<!-- not run: REASON -->` above a block says why it isn't, `<!-- prints: TEXT -->` what it has to print.
- Lines that begin with `make` are not run, since they would run these tests again or install. Nor are blocks
  with a line that begins with a tool for clusters, of which there is none here.
- Whether it is run or not, in the prose too: targets of `make`, subcommands and flags of `tokenfleet`, and
  paths in the repository have to exist.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
RUN = ("sh", "console", "python")
CLUSTER_TOOLS = ("helm", "kubectl", "docker", "kind", "minikube")
NOT_COMMANDS = tuple("text yaml json jsonl toml ini html javascript js css proto mermaid".split())
_REMARK = re.compile(r"<!--\s*(not run|prints):\s*(.*?)\s*-->", re.DOTALL)
# What a command line begins with, to find those that stand in a block which nobody would run.
_COMMAND = re.compile(
    r"^\s*(?:\$ |\.venv/|(\./)?examples/\S+\.(sh|py)\b"
    r"|(?:make|curl|helm|kubectl|pip|python3?|docker|tokenfleet) +[-\w./:'\"])"
)


@dataclass(frozen=True)
class Block:
    """One fenced block. `reason` is why it is not run, "" when it is; `prints` what it has to print."""

    document: str  # its path below the repository's root
    line: int
    language: str
    text: str
    reason: str = ""
    prints: str = ""

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in RUN and not self.reason and not self.needs_cluster and bool(self.commands)

    @property
    def needs_cluster(self) -> bool:
        tools = "|".join(CLUSTER_TOOLS)
        return re.search(rf"^(\$ )?({tools})\s", self.text, re.MULTILINE) is not None

    @property
    def commands(self) -> str:
        """What is run of it: everything but lines of `make`, which are checked instead."""
        return "".join(line for line in self.text.splitlines(keepends=True) if not is_make(line)).strip()


def is_make(line: str) -> bool:
    return re.match(r"\s*(\$ )?make(\s|$)", line) is not None


def documents() -> list[Path]:
    """README.md, CONTRIBUTING.md, and all that are in the folders that have some."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for folder in ("docs", "examples", "helm", "k8s", "benchmarks", "loadtest"):
        found += sorted((ROOT / folder).rglob("*.md"))
    return found


def blocks(document: Path) -> list[Block]:
    """Every fenced block of a document, with what the comments above it say."""
    name, found = str(document.relative_to(ROOT)), []
    remarks: dict[str, str] = {}
    for token in _tokens(document):
        if token.type == "html_block":
            remarks |= {kind: " ".join(text.split()) for kind, text in _REMARK.findall(token.content)}
        elif token.type == "fence":
            assert token.map is not None
            language = token.info.strip().split(" ")[0]
            found.append(
                Block(
                    name,
                    token.map[0] + 1,
                    language,
                    token.content,
                    remarks.get("not run", ""),
                    remarks.get("prints", ""),
                )
            )
            remarks = {}
        elif token.nesting >= 0 and not token.hidden:
            remarks = {}
    return found


def faults(document: Path) -> list[str]:
    """Blocks that nobody can say of whether they are commands; each finding says what to do."""
    found = []
    for block in blocks(document):
        if block.language not in (*RUN, *NOT_COMMANDS):
            found.append(
                f"{block.place}: fence it as one of {', '.join(RUN)} (which are run) or "
                f"{', '.join(NOT_COMMANDS)}, not as {block.language!r}"
            )
        elif block.language == "text":
            found += [
                f"{block.place}: {line.strip()!r} looks like a command: fence it as sh, "
                "or as console with its output"
                for line in block.text.splitlines()
                if _COMMAND.match(line)
            ]
    for token in _tokens(document):
        if token.type == "code_block":
            assert token.map is not None
            place = f"{document.relative_to(ROOT)}:{token.map[0] + 1}"
            found += [
                f"{place}: {line.strip()!r} looks like a command in an indented block: fence it as sh"
                for line in token.content.splitlines()
                if _COMMAND.match(line)
            ]
    return found


def mentioned_commands(document: Path) -> Iterator[tuple[str, str]]:
    """Every line of shell in a document, those that are not run and those in the prose too: place, line."""
    for block in blocks(document):
        if block.language in ("sh", "console"):
            for line in block.text.replace("\\\n", " ").splitlines():
                yield block.place, line.strip().removeprefix("$ ")
    for token in _tokens(document):
        for child in token.children or ():
            if child.type == "code_inline":
                assert token.map is not None
                yield f"{document.relative_to(ROOT)}:{token.map[0] + 1}", " ".join(child.content.split())


def missing_paths(line: str) -> list[str]:
    """Paths in the repository that a command names and that are not there."""
    named = re.findall(r"(?:^|[\s=@])((?:helm|k8s|config|examples|protos|loadtest|tests)/[\w./-]+)", line)
    return [path for path in named if not (ROOT / path).exists()]


def make_targets(line: str) -> list[str]:
    """The targets that a line asks make for; [] when it is no line of make."""
    if not is_make(line):
        return []
    words = shlex.split(line, comments=True)[1:]
    return [word for word in words if "=" not in word and not word.startswith("-")]


def known_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z0-9-]*):(?!=)", makefile, re.MULTILINE))


def example_scripts() -> list[Path]:
    """The examples that can be started; what belongs to one, as a web page's files do, is none."""
    return sorted(path for path in (ROOT / "examples").glob("*") if path.suffix in (".sh", ".py"))


def _tokens(document: Path) -> list[Token]:
    return MarkdownIt("commonmark").parse(document.read_text(encoding="utf-8"))
