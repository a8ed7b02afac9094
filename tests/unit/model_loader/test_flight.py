"""Who follows a demand: until its end, until their own time is up, or until nobody is left."""

import asyncio

from tokenfleet.core.residency import Demand, Settlement
from tokenfleet.model_loader.flight import Flight
from tokenfleet.v1 import common_pb2, model_loader_pb2

Stage = common_pb2.LoadProgress


async def collect(
    flight: Flight, timeout_s: float | None = None
) -> list[model_loader_pb2.EnsureLoadedResponse]:
    return [response async for response in flight.follow(timeout_s)]


def is_forsaken(flight: Flight) -> bool:
    return flight.forsaken


def settled(reason: str = "") -> Settlement:
    return Settlement(Demand("m", 1, frozenset(), 0.0), worker_id="w", reason=reason, message="because")


async def test_what_a_demand_waits_for_is_told_once_and_then_its_end() -> None:
    flight = Flight("m")
    following = asyncio.create_task(collect(flight))
    await asyncio.sleep(0)
    for _ in range(3):
        flight.wait("memory is in use", 1500)
        await asyncio.sleep(0)
    flight.settle(settled())
    told = await following
    assert [one.progress.detail for one in told] == ["", "memory is in use", ""]
    assert told[1].progress.eta_ms == 1500
    assert (told[-1].progress.stage, told[-1].worker_id) == (Stage.STAGE_READY, "w")


async def test_who_has_no_time_left_is_told_what_it_waited_for_and_the_others_go_on() -> None:
    flight = Flight("m")
    patient = asyncio.create_task(collect(flight))
    flight.wait("memory is in use", 0)
    last = (await collect(flight, 0.01))[-1].progress
    assert last.failure.reason == common_pb2.REASON_DEADLINE_EXCEEDED
    assert "memory is in use" in last.failure.message
    assert not is_forsaken(flight)
    flight.settle(settled("out_of_memory"))
    assert (await patient)[-1].progress.failure.reason == common_pb2.REASON_OUT_OF_MEMORY


async def test_a_flight_without_followers_is_forsaken_until_it_is_over() -> None:
    flight = Flight("m")
    assert is_forsaken(flight)
    following = asyncio.create_task(collect(flight))
    await asyncio.sleep(0)
    assert not is_forsaken(flight)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert is_forsaken(flight)
    flight.settle(settled())
    assert not is_forsaken(flight)
