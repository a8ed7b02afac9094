"""Two routers share the models; either may be killed at any moment, and nobody notices."""

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests.contract.keys import bearer, made_key, write_keys
from tests.e2e.catalogs import simulated, write_catalog
from tests.e2e.load import Load
from tests.e2e.sim_fleet import scrape, sim_fleet
from tests.e2e.streams import chat_body
from tokenfleet.cli.local_fleet import FleetSecurity, FleetSpec, LocalFleet
from tokenfleet.gateway.router_client import affinity

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ROUTERS = ("router-0", "router-1")
MODELS = ("red", "green", "blue")
CLIENTS = 6  # for each model, of which a third can run at a time: the others wait in a router
KILLS = 6


def home(fleet: LocalFleet, model: str) -> str:
    """The router that decides for the model while both live."""
    return max(ROUTERS, key=lambda name: affinity(fleet.addresses[name], model))


def gateway_metrics(fleet: LocalFleet) -> str:
    return f"http://{fleet.metrics_addresses['gateway']}/metrics"


async def test_killed_routers_cost_no_request(tmp_path: Path) -> None:
    chance = random.Random()
    async with (
        sim_fleet(tmp_path, workers=2, routers=2, itl_ms=10, models=MODELS, max_sequences=1) as fleet,
        AsyncExitStack() as running,
    ):
        loads = [Load(lambda: fleet.http_url, model) for model in MODELS]
        for load in loads:
            await load.learn()
            await running.enter_async_context(load.running(CLIENTS))
        for _ in range(KILLS):
            await chance.choice(loads).answered(chance.randint(1, CLIENTS))
            victim = home(fleet, chance.choice(MODELS))
            fleet.kill(victim)
            for load in loads:
                await load.answered(CLIENTS)
            await fleet.wait_ready(victim)
        asked_again = await scrape(gateway_metrics(fleet), "tokenfleet_gateway_router_reasks_total")
        await running.aclose()
        assert [load.lost for load in loads] == [[]] * len(MODELS)
        assert asked_again >= KILLS, "nothing waited in the routers that were killed"


LIMIT = 8  # requests that may wait
FLOOD = 20
ANSWER = 100  # tokens, of 10 ms each, one answer at a time
PROMPT = "hello " * 600  # more than a turn is worth, so that a turn is one request


class Saturated:
    """A fleet with one slow worker that two tenants share, and the order in which they are answered."""

    def __init__(self, path: Path) -> None:
        keys = {tenant: made_key(tenant) for tenant in ("greedy", "quiet")}
        self.keys = {tenant: key for tenant, (key, _) in keys.items()}
        engine = simulated(profile="fixed", ttft_ms=5, itl_ms=10, max_sequences=1, mean_output_tokens=0)
        self.spec = FleetSpec(
            state_dir=path / "state",
            workers=1,
            tokenizers=1,
            routers=2,
            engines=("sim",),
            catalog=write_catalog(path / "catalog.yaml", engine),
            flags={"router": ("--queue-limit", str(LIMIT))},
            security=FleetSecurity(api_keys=write_keys(path / "keys", *(line for _, line in keys.values()))),
            grace_s=3,
            restart=False,
        )
        self.answered: list[str] = []  # tenants, in the order in which their requests ended well
        self.refused: list[tuple[str, int]] = []

    @property
    def settled(self) -> int:
        """Requests that got an answer, whatever it is; the others are with the worker or wait."""
        return len(self.answered) + len(self.refused)

    async def ask(self, http: httpx.AsyncClient, tenant: str, tokens: int = ANSWER) -> None:
        body = chat_body("sim", PROMPT, tokens) | {"stream": False}
        del body["stream_options"]
        response = await http.post("/v1/chat/completions", json=body, headers=bearer(self.keys[tenant]))
        if response.status_code == 200:
            self.answered.append(tenant)
        else:
            self.refused.append((tenant, response.status_code))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def waiting(fleet: LocalFleet, router: str) -> float:
    url = f"http://{fleet.metrics_addresses[router]}/metrics"
    return await scrape(url, "tokenfleet_router_queue_depth")


async def until_waiting(fleet: LocalFleet, router: str, at_least: int) -> None:
    async with asyncio.timeout(30):
        while await waiting(fleet, router) < at_least:
            await asyncio.sleep(0.02)


async def test_bound_and_turns_hold_across_a_take_over(tmp_path: Path) -> None:
    saturated = Saturated(tmp_path)
    async with (
        LocalFleet(saturated.spec) as fleet,
        httpx.AsyncClient(base_url=fleet.http_url, timeout=60) as http,
        asyncio.TaskGroup() as tasks,
    ):
        async with asyncio.timeout(60):
            while not saturated.answered:
                await saturated.ask(http, "quiet", 1)
        saturated.answered.clear()
        saturated.refused.clear()

        def flood(tenant: str, count: int) -> None:
            for _ in range(count):
                tasks.create_task(saturated.ask(http, tenant))

        decides = home(fleet, "sim")
        (takes_over,) = set(ROUTERS) - {decides}
        flood("greedy", FLOOD)
        await until(lambda: saturated.settled >= FLOOD - LIMIT - 2)
        flood("quiet", 2)
        await until(lambda: saturated.settled >= FLOOD - LIMIT)
        before = len(saturated.answered)
        fleet.kill(decides)
        await until_waiting(fleet, takes_over, LIMIT - 3)
        shed = len(saturated.refused)
        flood("greedy", LIMIT)
        await until(lambda: len(saturated.refused) > shed)
        assert await waiting(fleet, takes_over) <= LIMIT
        await until(lambda: saturated.answered.count("quiet") == 2)
    assert {code for _, code in saturated.refused} == {429}
    assert {tenant for tenant, _ in saturated.refused} == {"greedy"}
    in_turn = saturated.answered[before:]
    # two or three were with the worker, and after them the tenants take turns; last come would be the ninth
    assert [position for position, tenant in enumerate(in_turn) if tenant == "quiet"][-1] < 3 + 2 * 2 + 1
