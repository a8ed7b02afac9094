"""One model, two engines: a vLLM worker and a llama.cpp worker behind one name."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import grpc
import pytest
import pytest_asyncio

from tests.e2e.catalogs import mixed, write_catalog
from tests.e2e.sim_fleet import scrape, until_served
from tests.e2e.streams import Answered, chat
from tests.engines.installed import needs
from tokenfleet.cli.local_fleet import FleetSpec, LocalFleet
from tokenfleet.v1 import model_loader_pb2, model_loader_pb2_grpc

pytestmark = [
    *needs("vllm", "xllamacpp"),
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
]

MODEL = "smollm2"
VLLM, LLAMACPP = "worker-0", "worker-1"
REQUESTS = 64
PATIENCE_S = 400
CAPITALS = {"France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Spain": "Madrid"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalFleet]:
    path = tmp_path_factory.mktemp("mixed")
    spec = FleetSpec(
        state_dir=path / "state",
        workers=2,
        tokenizers=1,
        zones=("zone-a",),
        engines=("vllm,llamacpp",),
        catalog=write_catalog(path / "catalog.yaml", mixed(MODEL)),
        grace_s=3,
        start_timeout_s=PATIENCE_S,
    )
    async with LocalFleet(spec) as running:
        await until_both_have_it(running)
        yield running


async def until_both_have_it(fleet: LocalFleet) -> None:
    """Waits until the model is ready on both workers, and the fleet serves it."""
    loader = fleet.addresses["model-loader"]
    async with asyncio.timeout(PATIENCE_S), grpc.aio.insecure_channel(loader) as channel:
        stub = model_loader_pb2_grpc.ModelLoaderStub(channel)
        states: list[str] = []
        while states.count("ready") < 2:
            answer = await stub.ListResidency(model_loader_pb2.ListResidencyRequest())
            states = [place.state for model in answer.models for place in model.places]
            assert "failed" not in states, answer
            await asyncio.sleep(0.2)
    await until_served(fleet, MODEL, PATIENCE_S)


async def tokens_of(fleet: LocalFleet, worker: str) -> float:
    url = f"http://{fleet.metrics_addresses[worker]}/metrics"
    return await scrape(url, "tokenfleet_worker_tokens_total")


async def ask_all(fleet: LocalFleet) -> list[Answered]:
    """Short questions with a known answer, and stories of a known length, all at once."""
    ask = partial(chat, fleet.http_url, MODEL, return_token_ids=True)
    stories = [ask(f"Tell me story number {number}", 40, ignore_eos=True) for number in range(REQUESTS // 2)]
    countries = list(CAPITALS) * (REQUESTS // 2 // len(CAPITALS))
    questions = [ask(f"What is the capital of {country}?", 16) for country in countries]
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.gather(*stories, *questions)


def wrong(answers: list[Answered]) -> list[str]:
    """What is not as it should be, for people."""
    problems = []
    for answer in answers:
        country = next((name for name in CAPITALS if name in answer.prompt), "")
        if answer.error or not answer.done:
            problems.append(f"{answer.prompt}: {answer.error or 'without [DONE]'}")
        elif country and CAPITALS[country] not in answer.text:
            problems.append(f"{answer.prompt}: {answer.text}")
        elif not country and (answer.usage["completion_tokens"], answer.finish_reason) != (40, "length"):
            problems.append(f"{answer.prompt}: {answer.usage}, {answer.finish_reason}")
    return problems


async def test_both_engines_answer_and_all_answers_are_right(fleet: LocalFleet) -> None:
    before = {worker: await tokens_of(fleet, worker) for worker in (VLLM, LLAMACPP)}
    assert wrong(await ask_all(fleet)) == []
    for worker, tokens in before.items():
        assert await tokens_of(fleet, worker) > tokens, f"{worker} did nothing"


@pytest.mark.parametrize("victim", [VLLM, LLAMACPP])
async def test_when_one_is_killed_the_other_goes_on(fleet: LocalFleet, victim: str) -> None:
    before = await tokens_of(fleet, victim)
    asking = asyncio.create_task(ask_all(fleet))
    async with asyncio.timeout(PATIENCE_S):
        while await tokens_of(fleet, victim) < before + 100:
            assert not asking.done(), f"{victim} was given next to nothing"
            await asyncio.sleep(0.05)
    fleet.kill(victim)
    answers = await asking
    assert wrong(answers) == []
    assert any(len(answer.attempts) > 1 for answer in answers), "nothing ran there when it was killed"
    await fleet.wait_ready(victim)
    await until_both_have_it(fleet)
