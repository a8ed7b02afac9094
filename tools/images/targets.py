"""What the Dockerfile can build, read from the Dockerfile itself."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"

# Their bases are many gigabytes of the engines' vendors: only who asks for them gets them.
ON_VENDOR_IMAGES = ("worker-vllm", "worker-trtllm")


@dataclass(slots=True)
class Stage:
    """One `FROM … AS name` and its instructions, each on one line."""

    name: str
    base: str
    instructions: list[str] = field(default_factory=list)

    def having(self, keyword: str) -> list[str]:
        """The arguments of all instructions of that kind."""
        heads = (one.partition(" ") for one in self.instructions)
        return [rest.strip() for head, _, rest in heads if head == keyword]


def version() -> str:
    """The project's."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def stages(text: str) -> dict[str, Stage]:
    """By name, in order."""
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in _joined(text):
        match = re.fullmatch(r"FROM (\S+) AS (\S+)", line)
        if match is not None:
            current = found[match[2]] = Stage(match[2], match[1])
        elif current is not None:
            current.instructions.append(line)
    return found


def targets(text: str) -> list[str]:
    """The stages that make an image of their own: those that say what it runs, and what stands on them."""
    made: list[str] = []
    for stage in stages(text).values():
        if stage.having("ENTRYPOINT") or stage.base in made:
            made.append(stage.name)
    return made


def _joined(text: str) -> list[str]:
    """Instructions without comments, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [re.sub(r"\s+", " ", line).strip() for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()]
