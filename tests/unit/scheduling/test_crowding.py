import random

import pytest

from tokenfleet.core.scheduling.crowding import MEMORY, MOST_BUSY, Crowding


def found(busy: float) -> Crowding:
    crowding = Crowding()
    for _ in range(20 * MEMORY):
        crowding.found(busy)
    return crowding


@pytest.mark.parametrize("busy", [0.0, 0.3, 0.5])
def test_the_delay_is_what_more_work_costs_all_others_in_a_queue(busy: float) -> None:
    more = 1e-6
    waited, longer = waits(busy, 0.0), waits(busy, more)
    measured = (sum(longer) - sum(waited)) / (more * len(waited))
    assert found(busy).delay == pytest.approx(measured, rel=0.1)


def waits(arrival_rate: float, more: float, customers: int = 200_000) -> list[float]:
    """Of each customer of an M/M/1 queue, with services of length 1 on the average and so much more."""
    draw = random.Random(7)
    wait, all_waits = 0.0, []
    for _ in range(customers):
        all_waits.append(wait)
        idle = draw.expovariate(arrival_rate) if arrival_rate else float("inf")
        wait = max(0.0, wait + draw.expovariate(1.0) + more - idle)
    return all_waits


def test_beyond_a_steady_state_it_is_bounded() -> None:
    assert found(1.0).delay == pytest.approx(found(MOST_BUSY).delay)
