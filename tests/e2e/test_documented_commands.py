"""Every command of README.md, docs/ and examples/ is run as it stands, against a fleet like `make run`'s.

The fleet listens where the documents say that it does; where somebody else has those ports, others are put
into the commands. What is not run says why, in the document itself; the rules are in `tests/documents.py`.
"""

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests import documents
from tests.documents import Block
from tests.e2e.sim_fleet import until_served
from tests.e2e.terminal import on_terminal
from tokenfleet.cli.local_fleet import FleetSpec, LocalFleet, PortTakenError

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.real_model,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
]

MODEL = "smollm2-135m-instruct"
DOCUMENTED_PORTS = (8080, 8081)
PATIENCE_S = 120.0
COMMANDS = [block for path in documents.documents() for block in documents.blocks(path) if block.is_run]
# A script that a document shows how to run is run there.
SCRIPTS = [
    path
    for path in documents.example_scripts()
    if not any(f"examples/{path.name}" in block.commands for block in COMMANDS)
]


@dataclass(frozen=True)
class Workplace:
    """A directory that looks like the repository, and the environment of a person who works in it."""

    folder: Path
    environment: dict[str, str]
    ports: dict[int, int]  # the real ones, by those that the documents name

    def adapted(self, text: str) -> str:
        """With the ports at which the fleet really listens."""
        return re.sub(
            r"((?:127\.0\.0\.1|localhost):)(\d+)\b",
            lambda found: found[1] + str(self.ports.get(int(found[2]), found[2])),
            text,
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workplace(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Workplace]:
    state = tmp_path_factory.mktemp("state")
    fleet = await _started(state)
    try:
        await until_served(fleet, MODEL)
        addresses = (fleet.http_address, fleet.addresses["gateway"])
        ports = [int(address.rpartition(":")[2]) for address in addresses]
        place = Workplace(
            folder=tmp_path_factory.mktemp("clone"),
            environment={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "TOKENFLEET_STATE": str(state),
                "COLUMNS": "120",
            },
            ports=dict(zip(DOCUMENTED_PORTS, ports, strict=True)),
        )
        _furnish(place)
        yield place
    finally:
        await fleet.stop()


async def _started(state: Path) -> LocalFleet:
    """Where the documents say, or else on free ports."""
    for number, (http, grpc) in enumerate((DOCUMENTED_PORTS, (0, 0))):
        spec = FleetSpec(
            state_dir=state / str(number), http_port=http, grpc_port=grpc, engines=("llamacpp", "sim")
        )
        fleet = LocalFleet(spec)
        try:
            await fleet.start()
        except PortTakenError:
            await fleet.stop()
            continue
        except BaseException:
            await fleet.stop()
            raise
        return fleet
    raise AssertionError("no port is free")


def _furnish(place: Workplace) -> None:
    """Links to all there is, so that no command writes into the repository; the examples with real ports."""
    for path in documents.ROOT.iterdir():
        if path.name not in (".git", ".venv", "examples"):
            (place.folder / path.name).symlink_to(path)
    (place.folder / ".venv").symlink_to(sys.prefix)
    shutil.copytree(documents.ROOT / "examples", place.folder / "examples")
    for path in (place.folder / "examples").rglob("*"):
        if path.suffix in (".py", ".sh", ".html", ".js"):
            path.write_text(place.adapted(path.read_text(encoding="utf-8")), encoding="utf-8")


async def printed(*command: str, place: Workplace) -> str:
    """What the command writes to stdout; fails when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=place.folder,
        env=place.environment,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            output, errors = (each.decode() for each in await process.communicate())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"exit code {process.returncode}\n{output}\n{errors}"
    assert "Traceback" not in errors, errors
    return output


async def conversed(block: Block, place: Workplace) -> str:
    """Runs the commands of a `console` block, and types what it shows to be typed; all that was shown."""
    shown = ""
    for part in re.split(r"^\$ ", place.adapted(block.commands), flags=re.MULTILINE)[1:]:
        command, *rest = part.splitlines()
        async with on_terminal("sh", "-c", command, env=place.environment, cwd=place.folder) as terminal:
            for line in rest:
                if line.startswith("> "):
                    await terminal.until(r"(?:^|\n)> ")
                    terminal.type(line.removeprefix("> ") + "\n")
            code = await terminal.ended()
            terminal.read()
            assert code == 0, f"exit code {code}\n{terminal.shown}"
            shown += terminal.shown
    return shown


def sane(output: str, expected: str = "") -> None:
    assert output.strip(), "it printed nothing"
    assert "Traceback" not in output
    if expected:
        assert expected in output
    else:
        assert '"error"' not in output, output


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.place)
async def test_it_does_what_the_document_says(block: Block, workplace: Workplace) -> None:
    commands = workplace.adapted(block.commands)
    match block.language:
        case "sh":
            output = await printed("sh", "-eu", "-c", commands, place=workplace)
        case "python":
            output = await printed(sys.executable, "-c", commands, place=workplace)
        case _:
            output = await conversed(block, workplace)
    sane(output, block.prints)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
async def test_the_example_runs(script: Path, workplace: Workplace) -> None:
    copy = workplace.folder / "examples" / script.name
    command = (str(copy),) if script.suffix == ".sh" else (sys.executable, str(copy))
    output = await printed(*command, place=workplace)
    # each shows, on purpose, one request that is refused
    sane(output.replace('{"error"', ""))
