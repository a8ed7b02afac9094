"""Three real models on a worker with room for two, and one that comes and goes twenty times."""

import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import quantized
from tests.e2e.catalogs import real, write_catalog
from tests.e2e.sim_fleet import scrape
from tests.e2e.test_residency import PATIENCE_S, logged
from tokenfleet.cli.local_fleet import FleetSpec, LocalFleet

pytestmark = [pytest.mark.e2e, pytest.mark.real_model, pytest.mark.timeout(600)]

MIB = 1 << 20
ROOM = 2
REQUESTS = 100
TOKENS = 4
PROMPTS = ("The best thing about the sea is", "Once upon a time there was")
# It counts from when the loader heard of it, which on a busy machine is late: it must not change the order.
MIN_RESIDENCY_S = 0.05


def entries() -> list[dict[str, Any]]:
    """The same model three times, in three quantizations."""
    sources = {
        "q4-1": quantized.original(),
        "q8-0": quantized.variant("q8_0"),
        "q4-0": quantized.variant("q4_0"),
    }
    made = []
    for name, path in sources.items():
        entry = real(name, n_parallel=2, n_ctx=1024) | {"source": f"file://{path}", "digest": ""}
        (engine,) = entry["engines"]
        size = {"weights_bytes": path.stat().st_size, "kv_bytes": 128 * MIB}
        made.append(entry | {"policy": "lazy", "context_length": 1024, "engines": [{**engine, **size}]})
    return made


class Client:
    def __init__(self, fleet: LocalFleet) -> None:
        self._url = f"{fleet.http_url}/v1/completions"
        self._client = httpx.AsyncClient(timeout=PATIENCE_S)

    async def complete(self, model: str, prompt: str) -> tuple[str, str]:
        """The model that answered, and what."""
        body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "seed": 1}
        response = await self._client.post(self._url, json=body)
        assert response.status_code == 200, response.text
        answer = response.json()
        return answer["model"], answer["choices"][0]["text"]

    async def close(self) -> None:
        await self._client.aclose()


def requests() -> list[tuple[str, str]]:
    """A hundred, shuffled in blocks: few enough loads for a test, in an order that nobody arranged."""
    draw = random.Random(7)
    names = ["q4-1", "q8-0", "q4-0"]
    asked: list[tuple[str, str]] = []
    while len(asked) < REQUESTS:
        few = draw.sample(names, 2)
        asked += [(draw.choice(few), draw.choice(PROMPTS)) for _ in range(12)]
    return asked[:REQUESTS]


def expected(asked: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Loads and evictions of a cache of two models that lets go of the longest unused."""
    held: OrderedDict[str, None] = OrderedDict()
    loads: list[str] = []
    evictions: list[str] = []
    for model, _ in asked:
        if model not in held:
            loads.append(model)
            if len(held) == ROOM:
                evictions.append(held.popitem(last=False)[0])
        held[model] = None
        held.move_to_end(model)
    return loads, evictions


async def test_three_models_share_room_for_two_in_the_order_of_their_use(tmp_path: Path) -> None:
    models = entries()
    sizes = sorted(
        engine["weights_bytes"] + engine["kv_bytes"] for entry in models for engine in entry["engines"]
    )
    # any two fit, measured a little above what their entries say; three do not
    described = FleetSpec(
        state_dir=tmp_path / "state",
        workers=1,
        tokenizers=1,
        engines=("llamacpp",),
        catalog=write_catalog(tmp_path / "catalog.yaml", *models),
        flags={
            "worker": ("--memory-bytes", str(sum(sizes[1:]) + sizes[0] // 2), "--threads", "2"),
            "model-loader": ("--eviction", "lru", "--min-residency-s", str(MIN_RESIDENCY_S)),
        },
    )
    asked = requests()
    async with LocalFleet(described) as fleet:
        client = Client(fleet)
        answers: dict[tuple[str, str], set[str]] = {}
        for model, prompt in asked:
            answered_by, text = await client.complete(model, prompt)
            assert answered_by == model
            answers.setdefault((model, prompt), set()).add(text)
        await client.close()
        loads, evictions = expected(asked)
        loaded, evicted = logged(fleet, "model-loader", "loaded"), logged(fleet, "model-loader", "evicted")
        assert [record["model"] for record in loaded] == loads
        assert [record["model"] for record in evicted] == evictions
        assert [record["wanted_for"] for record in evicted] == loads[ROOM:]
        url = f"http://{fleet.metrics_addresses['model-loader']}/metrics"
        assert await scrape(url, "tokenfleet_model_loader_load_seconds_count") == len(loads)
        assert await scrape(url, 'tokenfleet_model_loader_evictions_total{cause="memory"}') == len(evictions)
    # each model says the same whenever it is asked, and not what the others say
    assert all(len(texts) == 1 for texts in answers.values()), answers
    said = {model: tuple(answers.get((model, prompt), {""}) for prompt in PROMPTS) for model, _ in asked}
    assert len({str(texts) for texts in said.values()}) > 1, said
