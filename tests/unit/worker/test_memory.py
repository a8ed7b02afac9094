"""Memory that does not come back makes the worker smaller, and is believed to be free once it is."""

import pytest

from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.memory import SLACK_BYTES, Memory, occupied_bytes

MB = 10**6
BUDGET = 10_000 * MB


class Machine:
    """What the kernel would say."""

    def __init__(self) -> None:
        self.occupied = 100 * MB
        self.memory = Memory(BUDGET, lambda: self.occupied)

    def load(self, size: int) -> int:
        before = self.memory.now()
        self.occupied += size
        return self.memory.grown(before)

    def unload(self, size: int, *, given_back: int, empty: bool) -> tuple[int, int]:
        before = self.memory.now()
        self.occupied -= given_back
        return self.memory.freed("m", before, size, empty=empty)


def test_what_comes_back_is_measured_and_little_that_stays_means_nothing() -> None:
    machine = Machine()
    assert machine.load(2_000 * MB) == 2_000 * MB
    freed, missing = machine.unload(2_000 * MB, given_back=1_950 * MB, empty=True)
    assert (freed, missing) == (1_950 * MB, 0)
    assert machine.memory.budget_bytes == BUDGET
    assert 50 * MB < SLACK_BYTES


def test_what_stays_away_is_taken_off_the_budget_also_while_others_are_there() -> None:
    machine = Machine()
    machine.load(2_000 * MB)
    machine.load(3_000 * MB)
    freed, missing = machine.unload(2_000 * MB, given_back=500 * MB, empty=False)
    assert (freed, missing) == (500 * MB, 1_500 * MB)
    assert machine.memory.budget_bytes == BUDGET - 1_500 * MB
    # the other one gives back its own and what the first had kept
    assert machine.unload(3_000 * MB, given_back=4_500 * MB, empty=True) == (4_500 * MB, 0)
    assert machine.memory.budget_bytes == BUDGET


def test_with_no_model_left_all_that_is_still_occupied_is_missing() -> None:
    machine = Machine()
    for _ in range(3):
        machine.load(2_000 * MB)
        machine.unload(2_000 * MB, given_back=1_900 * MB, empty=True)
    assert machine.memory.missing_bytes == 300 * MB


def test_a_load_beyond_what_is_left_is_refused_with_what_is_missing() -> None:
    machine = Machine()
    machine.memory.check("m", 6_000 * MB, held=4_000 * MB)
    machine.load(2_000 * MB)
    machine.unload(2_000 * MB, given_back=0, empty=True)
    with pytest.raises(FleetError, match="2000000000 more did not come back") as raised:
        machine.memory.check("m", 6_000 * MB, held=4_000 * MB)
    assert raised.value.reason == common_pb2.REASON_OUT_OF_MEMORY
    assert raised.value.missing_bytes == 6_000 * MB + 4_000 * MB - machine.memory.budget_bytes


def test_the_kernels_word_counts_this_process_and_its_children() -> None:
    assert occupied_bytes() > 10 * MB
