"""`tokenfleet up` from the first line to the last process, with the simulated engine."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.e2e.catalogs import simulated, write_catalog
from tests.e2e.streams import chat, chat_body
from tests.e2e.up import Up, all_gone, run, tokenfleet_up

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SMALL = ("--engine", "sim", "--workers", "1", "--tokenizers", "1", "--grace-s", "20")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def catalog(root: Path) -> Path:
    return write_catalog(
        root / "catalog.yaml", simulated(profile="fixed", ttft_ms=5, itl_ms=10, mean_output_tokens=0)
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(root: Path, catalog: Path) -> AsyncIterator[Up]:
    """The default fleet, shared by the tests that do it no lasting harm."""
    async with tokenfleet_up(root, "--engine", "sim", "--catalog", str(catalog)) as up:
        await up.line("tokenfleet is up")
        yield up


@pytest.mark.asyncio(loop_scope="module")
async def test_the_line_it_prints_is_answered(up: Up) -> None:
    line = await up.line("^  curl ")
    process = await asyncio.create_subprocess_shell(
        line, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    answer = json.loads(output)
    assert answer["choices"][0]["message"]["content"]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.asyncio(loop_scope="module")
async def test_status_as_json(up: Up) -> None:
    code, output = await run("status", "--json", root=up.root)
    assert code == 0
    status = json.loads(output)
    assert status["ready"] is True
    assert status["problems"] == []
    assert [(row["name"], row["zone"], row["state"]) for row in status["workers"]] == [
        ("worker-0", "zone-a", "ready"),
        ("worker-1", "zone-b", "ready"),
    ]
    assert [row["name"] for row in status["models"]] == ["sim"]
    assert set(status["models"][0]["places"].values()) == {"ready"}
    processes = {row["name"]: row for row in status["processes"]}
    assert len(processes) == 8
    assert {row["state"] for row in processes.values()} == {"ready"}
    assert all(row["memory_bytes"] > 0 for row in processes.values())


@pytest.mark.asyncio(loop_scope="module")
async def test_status_as_tables(up: Up) -> None:
    code, output = await run("status", root=up.root)
    assert code == 0
    words = [line.split() for line in output.splitlines()]
    assert next(line for line in words if line[:1] == ["worker-1"])[1:4] == ["zone-b", "ready", "sim"]
    assert up.url in output


@pytest.mark.asyncio(loop_scope="module")
async def test_a_second_fleet_on_the_same_port_is_told_who_runs_there(up: Up) -> None:
    code, output = await run("up", "--port", str(up.port), "--engine", "sim", root=up.root)
    assert code == 1
    assert f"a fleet already runs on port {up.port}, pid {up.process.pid}" in output
    assert "make run PORT=" in output
    assert output.count("\n") == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_port_that_another_program_holds_is_named(up: Up) -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    code, output = await run("up", "--port", str(port), "--engine", "sim", root=up.root)
    server.close()
    assert code == 1
    assert f"port {port} on 127.0.0.1 is taken by pid {os.getpid()}" in output
    assert "make run PORT=" in output
    assert output.count("\n") == 1


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["router", "tokenizer-0", "worker-0", "model-loader", "store"])
async def test_a_process_that_crashes_gets_another_life(up: Up, name: str) -> None:
    before = up.recorded(name)
    os.kill(before["pid"], signal.SIGKILL)
    await up.line(f"^{name} was killed by SIGKILL; starts again")
    await up.line(f"^{name} is ready again")
    after = up.recorded(name)
    assert after["pid"] != before["pid"]
    assert after["restarts"] == before["restarts"] + 1
    answer = await chat(up.url, "sim", f"after {name} came back", 8)
    assert answer.done, answer.error


async def test_ctrl_c_lets_running_answers_finish_and_leaves_no_process(root: Path, catalog: Path) -> None:
    async with tokenfleet_up(root, *SMALL, "--catalog", str(catalog)) as up:
        await up.line("tokenfleet is up")
        await up.line("^stop ")
        family = up.family()
        assert len(family) > 6
        async with streamed(up.url, "sim", 100) as lines:
            assert (await anext(lines)).startswith("data: ")
            up.ctrl_c()
            await up.line("^stopping: running requests may finish first")
            rest = [line async for line in lines]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 100
        assert await up.ended() == 0
        assert up.lines[-1] == "everything is stopped\n"
        assert await all_gone(family)
        assert not any("killed" in line for line in up.lines)
        code, output = await run("status", "--port", str(up.port), root=root)
        assert (code, "no fleet runs" in output) == (1, True)


async def test_a_second_ctrl_c_kills_at_once(root: Path, catalog: Path) -> None:
    async with tokenfleet_up(root, *SMALL, "--catalog", str(catalog)) as up:
        await up.line("tokenfleet is up")
        family = up.family()
        async with streamed(up.url, "sim", 4000) as lines:
            await anext(lines)
            up.ctrl_c()
            await up.line("^stopping")
            up.ctrl_c()
            assert await up.ended() == 130
            assert await all_gone(family)
            with pytest.raises(httpx.TransportError):
                assert "data: [DONE]" not in [line async for line in lines]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
async def test_a_killed_supervisor_leaves_no_process(root: Path, catalog: Path) -> None:
    async with tokenfleet_up(root, *SMALL, "--catalog", str(catalog)) as up:
        await up.line("tokenfleet is up")
        family = up.family()
        up.process.kill()
        await up.ended()
        assert await all_gone(family)


async def test_what_does_not_start_is_shown_with_its_last_words(
    root: Path, catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENFLEET_ROUTER_POLICY", "astrology")
    async with tokenfleet_up(root, *SMALL, "--catalog", str(catalog)) as up:
        assert await up.ended() == 1
        output = "".join(up.lines)
    assert "router exited with code 2" in output
    assert "astrology" in output
    assert "Traceback" not in output


async def test_a_bad_catalog_is_told_before_anything_starts(root: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("models: [{name: x, colour: blue}]\n")
    async with tokenfleet_up(root, *SMALL, "--catalog", str(broken)) as up:
        assert await up.ended() == 1
    assert up.lines[0].startswith(f"tokenfleet: {broken}: model 'x': ")
    assert any("model 'x': colour: unknown key" in line for line in up.lines)
    assert not any("starting" in line or "Traceback" in line for line in up.lines)


@asynccontextmanager
async def streamed(url: str, model: str, tokens: int) -> AsyncIterator[AsyncIterator[str]]:
    """The lines of a streamed answer as they arrive."""
    body = {**chat_body(model, "hello", tokens), "stream": True}
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json=body) as response,
    ):
        yield (line async for line in response.aiter_lines() if line)
