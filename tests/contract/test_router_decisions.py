"""The router over the wire: where it sends requests, when it makes them wait, and whom it sheds."""

import asyncio
import urllib.request
from collections import Counter
from typing import Any

import pytest

from tests.contract.router_harness import COLD, MODEL, Harness, router_between
from tests.contract.scripted_worker import Resident, ScriptedWorker, until
from tests.contract.service_process import launch
from tokenfleet.runtime.grpc_host import open_channel
from tokenfleet.runtime.roles import ROUTER
from tokenfleet.v1 import common_pb2, router_pb2, router_pb2_grpc, worker_pb2

Release = router_pb2.Release
Stage = common_pb2.LoadProgress


def pair(**fields: Any) -> tuple[ScriptedWorker, ScriptedWorker]:
    return ScriptedWorker("a", zone="zone-a", **fields), ScriptedWorker("b", zone="zone-b", **fields)


@pytest.mark.parametrize("frames", [True, False], ids=["frames", "grpc"])
async def test_asks_of_one_message_are_spread_and_answered_in_one(frames: bool) -> None:
    workers = pair(slots=50)
    async with router_between(workers, frames=frames) as harness:
        gateway = harness.gateway
        ids = gateway.ask(40)
        placements = [(await gateway.answer(ask_id)).placement for ask_id in ids]
        assert gateway.messages == 1
        assert Counter(placement.worker_id for placement in placements) == {"a-1": 20, "b-1": 20}
        assert {placement.endpoint for placement in placements} == {worker.target for worker in workers}
        assert len({placement.reservation_id for placement in placements}) == 40
        assert {(p.model, p.residency_epoch) for p in placements} == {(MODEL, 1)}
        # what a sample contains is not counted twice; what ended is not counted at all
        admitted = [p.reservation_id for p in placements if p.worker_id == "a-1"]
        workers[0].sample(MODEL, running=20, admitted=admitted)
        gateway.send(releases=[Release(ask_id=ask_id) for ask_id in ids[:40]])
        for worker in workers:
            await harness.knows(worker, lambda view: not view.reserved)
        assert (await gateway.placed()).worker_id == "b-1"


async def test_a_gateways_zone_breaks_ties() -> None:
    async with router_between(pair(slots=50)) as harness:
        for zone, worker in (("zone-b", "b-1"), ("zone-a", "a-1")):
            placement = await harness.gateway.placed(context={"client_zone": zone})
            assert (placement.worker_id, placement.zone) == (worker, zone)


async def test_a_broken_watch_removes_the_worker_at_once_and_its_return_brings_it_back() -> None:
    a, b = pair(slots=50)
    async with router_between((a, b)) as harness:
        a.break_watches()
        await harness.router.logged("worker watch broken", target=a.target)
        gateway = harness.gateway
        assert {(await gateway.placed()).worker_id for _ in range(6)} == {"b-1"}
        await harness.router.logged("worker connected", 2, target=a.target)
        assert (await gateway.placed()).worker_id == "a-1"


async def test_a_fleet_that_died_keeps_requests_until_it_is_back() -> None:
    a, b = pair(slots=50)
    async with router_between((a, b), "--no-worker-timeout-s", "20") as harness:
        gateway = harness.gateway
        first = await gateway.placed()
        await a.die()
        await b.die()
        await harness.router.logged("worker watch broken", 2)
        gateway.release(1, Release.OUTCOME_WORKER_LOST)
        (resumed,) = gateway.ask(attempt=2, excluded_workers=[first.worker_id])
        (new,) = gateway.ask()
        await gateway.waits(resumed)
        await gateway.waits(new)
        await a.start()
        a.holds(MODEL)
        assert (await gateway.answer(resumed)).placement.worker_id == "a-2"
        assert (await gateway.answer(new)).placement.worker_id == "a-2"


async def test_a_fleet_that_stays_away_is_given_up_and_later_asks_hear_it_at_once() -> None:
    a = ScriptedWorker("a")
    async with router_between((a,), "--no-worker-timeout-s", "0.6") as harness:
        gateway = harness.gateway
        await a.die()
        await harness.router.logged("worker watch broken")
        for _ in range(2):
            failure = (await gateway.answer(gateway.ask()[0])).failure
            assert failure.reason == common_pb2.REASON_NO_WORKER
            assert failure.retry_after_ms > 0
        assert [d.WhichOneof("kind") for d in gateway.decisions[2]] == ["failure"]


async def test_a_full_fleet_queues_and_a_sample_or_release_makes_room() -> None:
    worker = ScriptedWorker("a", slots=2)
    async with router_between((worker,)) as harness:
        gateway = harness.gateway
        ids = gateway.ask(5)
        await gateway.waits(ids[-1])
        placed = [gateway.decisions[ask_id][0].placement.reservation_id for ask_id in ids[:2]]
        positions = [gateway.decisions[ask_id][0].waiting.position for ask_id in ids[2:]]
        assert positions == [0, 1, 2]
        worker.sample(MODEL, running=2, admitted=placed)
        worker.sample(MODEL, running=1)
        third = (await gateway.answer(ids[2])).placement
        worker.sample(MODEL, running=2, admitted=[third.reservation_id])
        gateway.send(cancels=[router_pb2.CancelAsk(ask_id=ids[3])])
        worker.sample(MODEL, running=1)
        await gateway.answer(ids[4])
        gateway.release(ids[4])
        last = await gateway.placed()
        assert last.worker_id == "a-1"
        assert gateway.decisions[ids[3]][-1].HasField("waiting"), "a cancelled ask is not answered"


async def test_a_full_queue_sheds_with_a_retry_after_and_higher_classes_go_first() -> None:
    worker = ScriptedWorker("a", slots=2)
    async with router_between((worker,), "--queue-limit", "2") as harness:
        gateway = harness.gateway
        await harness.sample(worker, running=2)
        (standard,) = gateway.ask()
        (batch,) = gateway.ask(context={"priority": common_pb2.PRIORITY_BATCH})
        (second, third) = gateway.ask(2)
        for ask_id in (batch, third):
            failure = (await gateway.answer(ask_id)).failure
            assert failure.reason == common_pb2.REASON_QUEUE_FULL
            assert failure.retry_after_ms >= 1000
        worker.sample(MODEL, running=0)
        for ask_id in (standard, second):
            assert (await gateway.answer(ask_id)).HasField("placement")


async def test_deadlines_end_a_wait() -> None:
    worker = ScriptedWorker("a", slots=2)
    async with router_between((worker,)) as harness:
        gateway = harness.gateway
        await harness.sample(worker, running=2)
        (ask_id,) = gateway.ask(deadline_s=0.4)
        failure = (await gateway.answer(ask_id)).failure
        assert failure.reason == common_pb2.REASON_DEADLINE_EXCEEDED
        assert [d.WhichOneof("kind") for d in gateway.decisions[ask_id]] == ["waiting", "failure"]


async def test_draining_failing_and_excluded_workers_take_nothing() -> None:
    a, b = pair(slots=50)
    async with router_between((a, b)) as harness:
        gateway = harness.gateway
        placement = await gateway.placed(excluded_workers=["a-1"])
        assert placement.worker_id == "b-1"
        await harness.becomes(a, worker_pb2.WORKER_STATE_DRAINING)
        assert {(await gateway.placed()).worker_id for _ in range(6)} == {"b-1"}


async def test_a_worker_reported_lost_is_skipped_until_its_watch_reconfirms() -> None:
    a, b = pair(slots=50)
    async with router_between((a, b)) as harness:
        gateway = harness.gateway
        await harness.sample(b, running=40)
        (ask_id,) = gateway.ask()
        assert (await gateway.answer(ask_id)).placement.worker_id == "a-1"
        gateway.release(ask_id, Release.OUTCOME_UNREACHABLE)
        assert (await gateway.placed()).worker_id == "b-1"
        a.sample(MODEL)
        async with asyncio.timeout(5):
            while (await gateway.placed()).worker_id != "a-1":
                await asyncio.sleep(0.02)


async def test_unknown_models_are_refused_by_name() -> None:
    async with router_between((ScriptedWorker("a"),)) as harness:
        failure = (await harness.gateway.answer(harness.gateway.ask(model="nonsense")[0])).failure
        assert failure.reason == common_pb2.REASON_MODEL_NOT_FOUND
        assert "nonsense" in failure.message
        assert MODEL in failure.message


async def test_a_cold_model_is_loaded_once_with_progress_and_placed_when_the_worker_says_so() -> None:
    worker = ScriptedWorker("a", slots=50)
    async with router_between((worker,), held=False) as harness:
        gateway, loader = harness.gateway, harness.loader
        ids = gateway.ask(20, model=COLD)
        await until(lambda: loader.calls)
        half = Stage(model=COLD, stage=Stage.STAGE_FETCHING, bytes_done=50, bytes_total=100)
        loader.progress.put_nowait(half)
        await until(lambda: gateway.decisions[ids[-1]][-1].waiting.HasField("load"))
        assert gateway.decisions[ids[0]][-1].waiting.load == half
        loader.progress.put_nowait(Stage(model=COLD, stage=Stage.STAGE_READY))
        worker.holds(COLD)
        for ask_id in ids:
            assert (await gateway.answer(ask_id)).placement.model == COLD
        assert len(loader.calls) == 1


async def test_a_load_that_fails_tells_everybody_the_engines_own_error() -> None:
    worker = ScriptedWorker("a")
    async with router_between((worker,), held=False) as harness:
        gateway, loader = harness.gateway, harness.loader
        ids = gateway.ask(3, model=COLD)
        await until(lambda: loader.calls)
        failure = common_pb2.Failure(
            reason=common_pb2.REASON_LOAD_FAILED, message="tensor blk.0 is missing", retry_after_ms=4000
        )
        loader.progress.put_nowait(Stage(model=COLD, stage=Stage.STAGE_FAILED, failure=failure))
        for ask_id in ids:
            assert (await gateway.answer(ask_id)).failure == failure


async def test_a_load_that_nobody_can_do_yet_is_asked_for_again_until_it_is_done() -> None:
    worker = ScriptedWorker("a")
    async with router_between((worker,), held=False) as harness:
        gateway, loader = harness.gateway, harness.loader
        (ask_id,) = gateway.ask(model=COLD)
        for calls in (1, 2):
            await until(lambda calls=calls: len(loader.calls) == calls)  # type: ignore[misc]
            failure = common_pb2.Failure(reason=common_pb2.REASON_NO_WORKER, message="not connected yet")
            loader.progress.put_nowait(Stage(model=COLD, stage=Stage.STAGE_FAILED, failure=failure))
        await until(lambda: len(loader.calls) == 3)
        loader.progress.put_nowait(Stage(model=COLD, stage=Stage.STAGE_READY))
        worker.holds(COLD)
        assert (await gateway.answer(ask_id)).placement.worker_id == "a-1"


async def test_a_model_that_a_worker_holds_is_served_though_no_catalog_ever_came() -> None:
    worker = ScriptedWorker("a")
    async with router_between((worker,), loader_away=True) as harness:
        assert (await harness.gateway.placed()).worker_id == "a-1"
        failure = (await harness.gateway.answer(harness.gateway.ask(model="other")[0])).failure
        assert failure.reason == common_pb2.REASON_NO_WORKER
        assert "catalog" in failure.message


async def test_a_closed_stream_gives_its_reservations_and_places_in_the_queue_back() -> None:
    worker = ScriptedWorker("a", slots=2)
    async with router_between((worker,)) as harness:
        first = harness.gateway
        ids = first.ask(4)
        await first.waits(ids[-1])
        assert first.link is not None
        first.link.abort()
        await harness.router.logged("gateway left", waiting=2, placed=2)
        second = type(first)()
        await second.connect(harness.router.address, frames=False)
        assert (await second.placed()).worker_id == "a-1"
        assert second.link is not None
        second.link.close()


async def test_explain_tells_its_own_tenant_what_was_chosen_why_and_what_became_of_it() -> None:
    a, b = pair(slots=50)
    flags = ("--decision-log-ratio", "1")
    async with (
        router_between((a, b), *flags) as harness,
        open_channel(harness.router.address, ROUTER) as channel,
    ):
        await harness.becomes(b, worker_pb2.WORKER_STATE_DRAINING)
        (ask_id,) = harness.gateway.ask(context={"request_id": "explained"})
        await harness.gateway.answer(ask_id)
        (logged,) = await harness.router.logged("decision", request_id="explained")
        assert (logged["worker"], logged["reason"]) == ("a-1", "placed")
        harness.gateway.release(ask_id, Release.OUTCOME_FINISHED, ttft_s=0.25, cached_tokens=3)
        await harness.gateway.placed()  # the release was taken in
        stub = router_pb2_grpc.RouterStub(channel)
        (record,) = (
            await stub.Explain(router_pb2.ExplainRequest(request_id="explained", tenant="t"))
        ).records
        assert (record.chosen_worker, record.policy) == ("a-1", "predicted")
        assert "least predicted cost" in record.why
        costs = {candidate.worker_id: candidate.cost_s for candidate in record.candidates}
        assert costs["a-1"] > 0
        assert costs["b-1"] == 0, "nothing is predicted for a worker that is out of the question"
        assert {c.worker_id: c.veto for c in record.candidates} == {"a-1": "", "b-1": "draining"}
        assert (record.actual.ttft_s, record.actual.cached_tokens) == (0.25, 3)
        assert 0 < record.decided_in_us < 1e6
        foreign = await stub.Explain(router_pb2.ExplainRequest(request_id="explained", tenant="other"))
        assert not foreign.records


async def test_a_device_with_a_fault_gets_nothing_and_explain_names_it() -> None:
    a, b = pair(slots=50)
    async with (
        router_between((a, b)) as harness,
        open_channel(harness.router.address, ROUTER) as channel,
    ):
        await harness.gateway.placed()
        a.accelerator = worker_pb2.Accelerator(kind="NVIDIA H200", count=1, faults=["XID 79"])
        await harness.sample(a, running=1)
        placements = [
            await harness.gateway.placed(context={"request_id": f"r{number}"}) for number in range(5)
        ]
        assert {placement.worker_id for placement in placements} == {"b-1"}
        stub = router_pb2_grpc.RouterStub(channel)
        (record,) = (await stub.Explain(router_pb2.ExplainRequest(request_id="r4", tenant="t"))).records
        seen = {candidate.worker_id: candidate for candidate in record.candidates}
        assert seen["a-1"].veto == "its accelerator is faulty: XID 79"
        assert sum(seen["b-1"].parts_s.values()) == pytest.approx(seen["b-1"].cost_s, rel=1e-3)
        (view,) = [view for view in (await harness.views()).values() if view.info.name == "a"]
        assert list(view.load.accelerator.faults) == ["XID 79"]


async def test_an_objective_comes_from_the_class_and_the_request_may_tighten_it() -> None:
    (a,) = pair(slots=50)[:1]
    flags = ("--ttft-objectives", "interactive=1,batch=1000")
    interactive = {"priority": common_pb2.PRIORITY_INTERACTIVE}
    async with router_between((a,), *flags) as harness:
        await harness.sample(a, running=1, queued_prefill_tokens=30_000)  # some six seconds, as is believed
        (waits,) = harness.gateway.ask(context=interactive)
        await harness.gateway.waits(waits)
        await harness.sample(a, running=1, queued_prefill_tokens=0)
        await harness.gateway.answer(waits)
        await harness.sample(a, running=1, queued_prefill_tokens=30_000)
        batch = {"priority": common_pb2.PRIORITY_BATCH}
        await harness.gateway.placed(context=batch)
        await harness.gateway.placed()  # standard has none
        (tightened,) = harness.gateway.ask(context=batch, ttft_objective_s=1.0)
        await harness.gateway.waits(tightened)


async def test_a_prompt_goes_where_the_worker_says_that_its_prefix_is_cached() -> None:
    a, b = pair(slots=50)
    prompt = {"prompt_tokens": 64, "block_hashes": [1, 2, 3, 4]}
    async with router_between((a, b)) as harness:
        b.holds_cached(MODEL, [1, 2], sequence=7)
        b.caches(MODEL, [3], sequence=8)
        await becomes_cached(harness, 48, prompt)
        placements = [await harness.gateway.placed(**prompt) for _ in range(3)]
        assert {placement.worker_id for placement in placements} == {"b-1"}
        assert all(placement.predicted_ttft_s > 0 for placement in placements)
        b.holds_cached(MODEL, [1], sequence=20)
        await becomes_cached(harness, 16, prompt)


async def test_a_missed_change_of_a_cache_makes_the_router_ask_for_the_whole_again() -> None:
    a, b = pair(slots=50)
    async with router_between((a, b)) as harness:
        watches = b.watches
        b.holds_cached(MODEL, [1, 2], sequence=7)
        b.caches(MODEL, [3], sequence=9)
        await harness.router.logged("stream opened again", target=b.target)
        await until(lambda: b.watches == watches + 1)
        placement = await harness.gateway.placed(prompt_tokens=64, block_hashes=[1, 2, 3, 4])
        assert placement.predicted_cached_tokens == 0, "what was known is forgotten until it is told again"


async def becomes_cached(harness: Harness, tokens: int, prompt: dict[str, Any]) -> None:
    """Asks until the router expects so many tokens of the prompt to be cached."""
    async with asyncio.timeout(10):
        while True:
            (ask_id,) = harness.gateway.ask(**prompt)
            placement = (await harness.gateway.answer(ask_id)).placement
            harness.gateway.release(ask_id)
            if placement.predicted_cached_tokens == tokens:
                return


async def test_the_fleet_can_be_listed_and_watched_and_the_metrics_add_up() -> None:
    a, b = pair(slots=2)
    async with router_between((a, b)) as harness, open_channel(harness.router.address, ROUTER) as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        only_cold = await stub.ListWorkers(router_pb2.ListWorkersRequest(model=COLD))
        assert not only_cold.workers
        ids = harness.gateway.ask(5)
        await harness.gateway.waits(ids[-1])
        fleet = stub.WatchFleet(router_pb2.WatchFleetRequest(min_interval_ms=20))
        async for response in fleet:
            assert response.queue_depth == 1
            assert [view.connected for view in response.workers] == [True, True]
            assert sum(view.reserved for view in response.workers) == 4
            break
        fleet.cancel()
        page = await asyncio.to_thread(_get, harness.router.metrics)
        assert 'tokenfleet_router_decisions_total{policy="predicted",reason="placed"} 4.0' in page
        assert 'tokenfleet_router_queue_depth{class="standard"} 1.0' in page
        assert 'tokenfleet_router_workers{state="ready"} 2.0' in page
        assert "tokenfleet_router_queue_wait_seconds_count 4.0" in page


@pytest.mark.parametrize("frames", [True, False], ids=["frames", "grpc"])
async def test_sigterm_closes_the_streams_so_that_gateways_ask_elsewhere(frames: bool) -> None:
    worker = ScriptedWorker("a", slots=2)
    async with router_between((worker,), frames=frames) as harness:
        ids = harness.gateway.ask(4)
        await harness.gateway.waits(ids[-1])
        began = asyncio.get_running_loop().time()
        assert await harness.router.stop() == 0
        async with asyncio.timeout(5):
            await harness.gateway.ended.wait()
        assert asyncio.get_running_loop().time() - began < 5


async def test_an_address_that_cannot_be_bound_ends_the_process_with_the_remedy() -> None:
    service = await launch("router", "--listen", "192.0.2.1:1")
    assert await service.ended() == 1
    assert any("--listen" in str(record["event"]) for record in service.log), service.log


async def test_a_model_that_loads_already_is_waited_for() -> None:
    worker = ScriptedWorker("a", slots=50)
    async with router_between((worker,), "--no-worker-timeout-s", "0.3", held=False) as harness:
        worker.holds(MODEL, Resident.STATE_LOADING)
        await harness.knows(worker, lambda view: view.info.models)
        (ask_id,) = harness.gateway.ask()
        await harness.gateway.waits(ask_id)
        worker.holds(MODEL, Resident.STATE_READY)
        assert (await harness.gateway.answer(ask_id)).placement.worker_id == "a-1"


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())
