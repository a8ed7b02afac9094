"""A conversation's turns meet the tokenizer that knows it, and go on when that one dies."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.sim_fleet import scrape, sim_fleet
from tokenfleet.cli.local_fleet import LocalFleet

pytestmark = pytest.mark.e2e

TURNS = 20
TOKENIZERS = ("tokenizer-0", "tokenizer-1")
REUSED = "tokenfleet_tokenizer_prefix_cache_tokens_total"
OK = 'tokenfleet_tokenizer_requests_total{outcome="ok"}'


class Conversation:
    """Each question goes out with all that was said before it."""

    def __init__(self, fleet: LocalFleet, name: str) -> None:
        self._url = f"{fleet.http_url}/v1/chat/completions"
        self._name = name
        self._messages: list[dict[str, str]] = []
        self.prompt_tokens: list[int] = []

    async def ask(self, client: httpx.AsyncClient) -> None:
        question = f"{self._name} asks question {len(self._messages)}. " + "And then? " * 20
        self._messages.append({"role": "user", "content": question})
        body: dict[str, Any] = {"model": "sim", "messages": self._messages, "max_tokens": 4}
        answer = await client.post(self._url, json=body)
        assert answer.status_code == 200, answer.text
        self._messages.append(answer.json()["choices"][0]["message"])
        self.prompt_tokens.append(answer.json()["usage"]["prompt_tokens"])


def metrics(fleet: LocalFleet, name: str) -> str:
    return f"http://{fleet.metrics_addresses[name]}/metrics"


async def counted(fleet: LocalFleet, sample: str) -> dict[str, float]:
    """One sample of each tokenizer's metrics."""
    return {name: await scrape(metrics(fleet, name), sample) for name in TOKENIZERS}


async def test_twenty_turns_on_one_tokenizer(tmp_path: Path) -> None:
    async with sim_fleet(tmp_path, workers=1, itl_ms=1, tokenizers=2) as fleet, asyncio.timeout(60):
        before = await counted(fleet, OK)
        found_before = await counted(fleet, f'{REUSED}{{result="hit"}}')
        async with httpx.AsyncClient(timeout=20) as client:
            talk = Conversation(fleet, "Ann")
            for _ in range(TURNS):
                await talk.ask(client)
            after = await counted(fleet, OK)
            asked = {name: after[name] - before[name] for name in TOKENIZERS}
            assert sorted(asked.values()) == [0, TURNS], asked
            (home,) = [name for name, count in asked.items() if count]
            found = (await counted(fleet, f'{REUSED}{{result="hit"}}'))[home] - found_before[home]
            # each turn finds the prompt before it, but for the few tokens that open an answer
            assert found >= sum(talk.prompt_tokens[:-1]) - 4 * TURNS
            assert talk.prompt_tokens[-1] > 20 * talk.prompt_tokens[0] / 2
            await _another_takes_over(fleet, talk, home, client)


async def _another_takes_over(
    fleet: LocalFleet, talk: Conversation, home: str, client: httpx.AsyncClient
) -> None:
    """Killed, not stopped: the turns under way are asked of the other one."""
    (other,) = set(TOKENIZERS) - {home}
    before = (await counted(fleet, OK))[other]
    strangers = [Conversation(fleet, f"Bob {number}") for number in range(20)]
    asking = asyncio.gather(*(one.ask(client) for one in (*strangers, talk)))
    fleet.kill(home)
    await asking
    await talk.ask(client)
    assert await scrape(metrics(fleet, other), OK) > before
