"""`tokenfleet chat` and `tokenfleet models` against a whole fleet, on a terminal and in pipes."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.sim_fleet import scrape, sim_fleet, until_running
from tests.e2e.terminal import CTRL_C, CTRL_D, TerminalSession, on_terminal
from tests.e2e.up import COMMAND
from tokenfleet.cli.local_fleet import LocalFleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

ITL_MS = 25
CHAT = (*COMMAND, "chat")
FIGURES = r"TTFT [\d.]+ m?s · {tokens} tokens · [\d.]+ tokens/s · cut at the token limit\n"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalFleet]:
    async with sim_fleet(tmp_path_factory.mktemp("fleet"), workers=1, itl_ms=ITL_MS) as started:
        yield started


@pytest.fixture
def environment(fleet: LocalFleet) -> dict[str, str]:
    """That of a person on the machine where the fleet runs."""
    unwanted = ("NO_COLOR", "FORCE_COLOR", "TOKENFLEET_URL", "TOKENFLEET_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | {"TOKENFLEET_STATE": str(fleet.spec.state_dir.parent), "COLUMNS": "100"}


async def piped(
    *command: str, env: dict[str, str], stdin: bytes | None = b"", patience_s: float = 60
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command without a terminal; stdin None is a pipe never closed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(patience_s):
            if stdin is not None:
                process.stdin.write(stdin)
                process.stdin.close()
            output, errors, code = await asyncio.gather(
                process.stdout.read(), process.stderr.read(), process.wait()
            )
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process.stdin.close()
    return code, output.decode(), errors.decode()


def _answer(shown: str) -> str:
    """What stands between the question and the figures."""
    return shown.partition("> ")[2].partition("\n")[2].partition("TTFT")[0]


async def greeted(terminal: TerminalSession) -> None:
    await terminal.until("sim at http://127.0.0.1:")
    await terminal.until("leaves\n")


async def test_a_conversation_streams_and_ends_with_its_figures(
    fleet: LocalFleet, environment: dict[str, str]
) -> None:
    async with on_terminal(*CHAT, "--max-tokens", "8", env=environment) as terminal:
        await greeted(terminal)
        terminal.type("Good morning\n")
        first = await terminal.until(FIGURES.format(tokens=8))
        terminal.type("And now?\n")
        second = await terminal.until(FIGURES.format(tokens=8))
        terminal.type("/reset\n")
        await terminal.until("the conversation is forgotten")
        terminal.type("Good morning\n")
        again = await terminal.until(FIGURES.format(tokens=8))
        # a Ctrl-D that comes before the prompt ends no line
        await terminal.until("> ")
        terminal.type(CTRL_D)
        assert await terminal.ended() == 0
    # the simulated engine's answer depends on all that was sent
    answer, other, repeated = (_answer(shown) for shown in (first, second, again))
    assert answer
    assert answer == repeated, "after /reset the same question must be a new conversation"
    assert other != answer
    assert COLOUR.search(terminal.raw)


async def test_the_conversation_is_sent_with_each_question(
    fleet: LocalFleet, environment: dict[str, str]
) -> None:
    prompt = 'tokenfleet_gateway_tokens_total{kind="prompt"}'
    metrics = f"http://{fleet.metrics_addresses['gateway']}/metrics"

    async def prompt_tokens(terminal: TerminalSession, line: str) -> float:
        before = await scrape(metrics, prompt)
        terminal.type(line)
        await terminal.until(FIGURES.format(tokens=8))
        return await scrape(metrics, prompt) - before

    async with on_terminal(*CHAT, "--max-tokens", "8", env=environment) as terminal:
        await greeted(terminal)
        first = await prompt_tokens(terminal, "Hello\n")
        second = await prompt_tokens(terminal, "Hello\n")
        assert second > first + 8, "the second prompt holds the first question and its answer"
        terminal.type("/system You are a pirate with a long and weary story.\n")
        await terminal.until("system prompt: You are")
        assert await prompt_tokens(terminal, "Hello\n") > second + 16
        terminal.type("/quit\n")
        assert await terminal.ended() == 0


async def test_ctrl_c_stops_the_answer_at_the_worker_and_the_conversation_goes_on(
    fleet: LocalFleet, environment: dict[str, str]
) -> None:
    async with on_terminal(*CHAT, env=environment) as terminal:
        await greeted(terminal)
        terminal.type("Tell me a story without an end\n")
        await until_running(fleet, 1)
        await terminal.until(r"\w+ \w+")
        terminal.type(CTRL_C)
        shown = await terminal.until(r"stopped · TTFT [\d.]+ m?s · (\d+) tokens?")
        await until_running(fleet, 0)
        assert int(re.findall(r"(\d+) token", shown)[-1]) < 8000, "it must not have run to the end"
        await terminal.until("\n> ")
        terminal.type("half a line")
        await terminal.until("half a line")
        terminal.type(CTRL_C)
        await terminal.until("\n> ")
        assert terminal.process.returncode is None, "with something typed, Ctrl-C only drops the line"
        terminal.type(CTRL_C)
        assert await terminal.ended() == 0


async def test_a_wrong_command_or_model_is_told_and_harms_nothing(
    fleet: LocalFleet, environment: dict[str, str]
) -> None:
    async with on_terminal(*CHAT, "--max-tokens", "4", env=environment) as terminal:
        await greeted(terminal)
        for line, told in (
            ("/nonsense", "there is no command /nonsense; /help lists them"),
            ("/model nope", "no model is called 'nope'; there are: sim"),
            ("/model", r"\* sim"),
            ("/help", "/system TEXT"),
            ("still there?", FIGURES.format(tokens=4)),
        ):
            terminal.type(f"{line}\n")
            await terminal.until(told)
        await terminal.until("> ")


async def test_no_color_is_obeyed_on_a_terminal(fleet: LocalFleet, environment: dict[str, str]) -> None:
    async with on_terminal(*CHAT, "-m", "sim", "--max-tokens", "2", "Hi", env=environment) as terminal:
        assert await terminal.ended() == 0
        await terminal.until("tokens")
    assert COLOUR.search(terminal.raw)
    environment["NO_COLOR"] = "1"
    async with on_terminal(*CHAT, "-m", "sim", "--max-tokens", "2", "Hi", env=environment) as terminal:
        assert await terminal.ended() == 0
        await terminal.until("tokens")
    assert not COLOUR.search(terminal.raw)


async def test_a_question_from_a_pipe_leaves_the_answer_alone_on_stdout(
    fleet: LocalFleet, environment: dict[str, str]
) -> None:
    common = ("--max-tokens", "6", "-t", "0")
    code, answer, figures = await piped(*CHAT, *common, env=environment, stdin=b"What is it?\n")
    assert code == 0
    assert re.fullmatch(FIGURES.format(tokens=6), figures)
    assert answer.endswith("\n")
    assert "\x1b" not in answer + figures
    code, as_json, figures = await piped(*CHAT, *common, "--json", "What", "is it?", env=environment)
    assert (code, figures) == (0, "")
    assert as_json.count("\n") == 1
    said = json.loads(as_json)
    assert said["text"] + "\n" == answer
    assert said["model"] == "sim"
    assert (said["tokens"], said["finish_reason"]) == (6, "length")
    assert said["usage"]["completion_tokens"] == 6
    assert 0 < said["ttft_s"] < 60
    assert said["tokens_per_s"] > 0


async def test_a_question_on_the_command_line_does_not_wait_for_stdin(
    fleet: LocalFleet, environment: dict[str, str]
) -> None:
    code, answer, _ = await piped(*CHAT, "--max-tokens", "2", "Hi", env=environment, stdin=None)
    assert (code, bool(answer)) == (0, True)


async def test_an_answer_survives_its_worker_and_says_so(
    fleet: LocalFleet, environment: dict[str, str]
) -> None:
    async with on_terminal(*CHAT, "--max-tokens", "60", "A long story", env=environment) as terminal:
        await until_running(fleet, 1)
        await terminal.until(r"\w+ \w+")
        fleet.kill("worker-0")
        await terminal.until("TTFT .* · 60 tokens · .* · survived 1 lost worker\n")
        assert await terminal.ended() == 0


async def test_strange_input_is_no_traceback(fleet: LocalFleet, environment: dict[str, str]) -> None:
    code, answer, _ = await piped(*CHAT, "--max-tokens", "2", env=environment, stdin=b"caf\xe9 \x00?")
    assert (code, bool(answer)) == (0, True)
    code, _, errors = await piped("sh", "-c", f"{' '.join(CHAT)} <&-", env=environment)
    assert (code, errors.startswith("tokenfleet: nothing to ask")) == (1, True)


async def test_ctrl_c_of_a_single_question_cancels_it_and_says_so_in_its_exit_code(
    fleet: LocalFleet, environment: dict[str, str]
) -> None:
    async with on_terminal(*CHAT, "A story", "without end", env=environment) as terminal:
        await until_running(fleet, 1)
        await terminal.until(r"\w+ \w+")
        terminal.type(CTRL_C)
        assert await terminal.ended() == 130
        await terminal.until("stopped · TTFT")
    await until_running(fleet, 0)


async def test_models_are_listed_with_their_place(fleet: LocalFleet, environment: dict[str, str]) -> None:
    code, table, _ = await piped(*COMMAND, "models", env=environment)
    assert code == 0
    rows = [line.split() for line in table.splitlines()]
    assert ["sim", "8,192", "warm", "worker-0", "–"] in rows
    code, as_json, _ = await piped(*COMMAND, "models", "--json", env=environment)
    (model,) = json.loads(as_json)["models"]
    assert (model["name"], model["resident"], model["places"]) == ("sim", True, {"worker-0": "ready"})
    assert (model["policy"], model["context_length"]) == ("warm", 8192)
    code, table, _ = await piped(*COMMAND, "models", "--url", fleet.http_url, env=environment)
    assert ["sim", "8,192", "warm", "worker-0", "–"] in [line.split() for line in table.splitlines()]


@pytest.mark.parametrize("command", ["chat", "models", "status"])
async def test_without_a_fleet_the_remedy_is_named(tmp_path: Path, command: str) -> None:
    env = {**os.environ, "TOKENFLEET_STATE": str(tmp_path)}
    code, output, errors = await piped(*COMMAND, command, env=env, stdin=b"hello")
    assert (code, output) == (1, "")
    assert errors.startswith("tokenfleet: no fleet runs on this machine")
    assert f"Start one with: {'python -m tokenfleet.cli'} up" in errors
    assert errors.count("\n") == 1


async def test_the_script_that_is_installed_names_itself(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("tokenfleet")
    env = {**os.environ, "TOKENFLEET_STATE": str(tmp_path), "PATH": str(script.parent)}
    _, _, errors = await piped(str(script), "chat", "Hi", env=env)
    assert "Start one with: tokenfleet up;" in errors
