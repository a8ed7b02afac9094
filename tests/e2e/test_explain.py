"""`tokenfleet explain` beside a running fleet, with nothing but a request's id."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.catalogs import simulated, write_catalog
from tests.e2e.streams import chat_body
from tests.e2e.up import Up, run, tokenfleet_up

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PATIENCE_S = 60
ENGINE = simulated(profile="fixed", ttft_ms=5, itl_ms=20, mean_output_tokens=0)


async def ask(up: Up, request_id: str, tokens: int) -> dict[str, Any]:
    body = chat_body("sim", "Tell me a story", tokens) | {"stream": False}
    del body["stream_options"]
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        answer = await client.post(
            f"{up.url}/v1/chat/completions", json=body, headers={"X-Request-Id": request_id}
        )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def explained(up: Up, request_id: str) -> list[dict[str, Any]]:
    """The attempts once the router heard how the last of them ended."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            attempts = await attempts_of(up, request_id)
            if attempts[-1]["happened"] is not None:
                return attempts


async def attempts_of(up: Up, request_id: str) -> list[dict[str, Any]]:
    """As far as they are known; waits for the first."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            code, output = await run("explain", request_id, "--json", root=up.root)
            if code == 0:
                return list(json.loads(output)["attempts"])


async def test_requests_are_explained(tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path / "catalog.yaml", ENGINE)
    flags = ("--engine", "sim", "--workers", "2", "--tokenizers", "1", "--catalog", str(catalog))
    async with tokenfleet_up(tmp_path, *flags) as up:
        await up.line("tokenfleet is up")
        await ask(up, "warm-up", 8)
        await one_that_finished(up)
        await one_whose_worker_was_killed(up)
        code, output = await run("explain", "never-asked", root=up.root)
        assert code == 1
        assert "no decision about request never-asked" in output


async def one_that_finished(up: Up) -> None:
    answer = await ask(up, "undisturbed", 30)
    assert answer["id"] == "undisturbed"
    (attempt,) = await explained(up, "undisturbed")
    assert attempt["policy"] == "predicted"
    assert {row["zone"] for row in attempt["candidates"]} == {"zone-a", "zone-b"}
    happened, deviation = attempt["happened"], attempt["deviation"]
    assert (happened["outcome"], happened["completion_tokens"]) == ("finished", 30)
    chosen = next(row for row in attempt["candidates"] if row["worker"] == attempt["worker"])
    assert happened["itl_s"] > 0.01
    assert deviation["ttft_s"] == pytest.approx(happened["ttft_s"] - chosen["ttft_s"])
    assert deviation["cached_tokens"] == happened["cached_tokens"] - chosen["cached_tokens"]
    code, output = await run("explain", "undisturbed", root=up.root)
    assert code == 0
    assert f"attempt 1 → {attempt['worker']}: {attempt['why']}" in output
    assert "finished after 30 tokens" in output


async def one_whose_worker_was_killed(up: Up) -> None:
    asking = asyncio.create_task(ask(up, "disturbed", 250))
    (attempt,) = await attempts_of(up, "disturbed")
    assert attempt["happened"] is None
    name = attempt["worker"].rpartition("-")[0]
    os.kill(up.recorded(name)["pid"], signal.SIGKILL)
    assert (await asking)["usage"]["completion_tokens"] == 250
    first, second = await explained(up, "disturbed")
    assert (first["attempt"], first["happened"]["outcome"]) == (1, "worker_lost")
    assert (second["attempt"], second["happened"]["outcome"]) == (2, "finished")
    assert second["worker"] != first["worker"]
    assert first["happened"]["completion_tokens"] + second["happened"]["completion_tokens"] == 250
