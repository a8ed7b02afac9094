"""A gateway's stream against an engine that does what the test says."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.worker.fakes import SPLIT, STO, FakeEngine, FakeLink, P, resident, submit
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.dispatcher import Dispatcher
from tokenfleet.worker.engines.base import Finished
from tokenfleet.worker.resident import Resident, State
from tokenfleet.worker.session import Session

STOP = common_pb2.FINISH_REASON_STOP
LENGTH = common_pb2.FINISH_REASON_LENGTH
FAILED = common_pb2.FINISH_REASON_FAILED
CANCELLED = common_pb2.FINISH_REASON_CANCELLED


class Rig:
    """A session, its link and the engine behind it."""

    def __init__(self, **limits: Any) -> None:
        self.link = FakeLink()
        self.engine = FakeEngine()
        self.resident: Resident = resident(self.engine)
        self.dispatcher = Dispatcher({"m": self.resident}, limits.get("queue_limit", 100))
        self.admitted: list[str] = []
        self.ended: list[Session] = []
        self.session = Session(
            self.link,
            self.dispatcher,
            admitted=self.admitted.append,
            ended=self.ended.append,
            coalesce_s=0.0,
            stuck_s=5.0,
        )

    def receive(self, *submits: worker_pb2.Submit, **fields: Any) -> None:
        self.session.received([worker_pb2.ServeRequest(submits=submits, **fields)])

    def key(self, position: int = -1) -> int:
        return self.engine.submitted[position].key

    def step(self, *deltas: tuple[int, Sequence[int]], finished: Sequence[Finished] = ()) -> None:
        self.dispatcher.step(deltas, finished)

    @property
    def terminal(self) -> worker_pb2.Terminal:
        (terminal,) = self.link.terminals
        return terminal


@pytest.fixture
async def rig() -> Rig:
    return Rig()


async def test_tokens_become_text_and_the_end_comes_last(rig: Rig) -> None:
    rig.receive(submit(4))
    rig.step((rig.key(), (5,)))
    rig.step((rig.key(), (6, 7)), finished=[Finished(rig.key(), LENGTH, 2, 0.1, 0.25)])
    assert rig.link.text(4) == " w5 w6 w7"
    terminal = rig.terminal
    assert (terminal.slot, terminal.attempt, terminal.finish_reason) == (4, 1, LENGTH)
    assert (terminal.cached_tokens, terminal.queue_ms, terminal.prefill_ms) == (2, 100, 250)
    assert rig.dispatcher.running == 0
    assert rig.resident.running == 0


async def test_a_stop_string_over_token_borders_ends_the_engine_s_work(rig: Rig) -> None:
    rig.receive(submit(1, sampling={"stop": ["STOP"]}))
    rig.step((rig.key(), (5,)))
    rig.step((rig.key(), (STO,)))
    assert rig.link.text(1) == " w5"
    rig.step((rig.key(), (P, 6)))
    assert rig.link.text(1) == " w5"
    assert rig.engine.aborted == [rig.key()]
    assert (rig.terminal.finish_reason, rig.terminal.stop_matched) == (STOP, "STOP")
    assert rig.terminal.cached_tokens == 7
    assert sum(len(step.token_ids) for step in rig.link.steps) == 3  # not what came behind the stop


async def test_what_was_held_back_is_given_out_at_a_clean_end(rig: Rig) -> None:
    rig.receive(submit(1, sampling={"stop": ["STOP"]}))
    rig.step((rig.key(), (STO,)))
    rig.step(finished=[Finished(rig.key(), LENGTH)])
    assert rig.link.text(1) == "STO"


async def test_a_stop_token_ends_without_being_delivered(rig: Rig) -> None:
    rig.receive(submit(1, sampling={"stop_token_ids": [9]}))
    rig.step((rig.key(), (5, 9, 6)))
    assert rig.link.text(1) == " w5"
    assert list(rig.link.steps[0].token_ids) == [5]
    assert rig.terminal.finish_reason == STOP


async def test_a_cancel_frees_the_engine_and_is_confirmed(rig: Rig) -> None:
    rig.receive(submit(1))
    rig.receive(cancels=[{"slot": 1, "attempt": 1}])
    assert rig.engine.aborted == [rig.key()]
    assert rig.terminal.finish_reason == CANCELLED
    rig.step((rig.key(), (5,)), finished=[Finished(rig.key(), LENGTH)])  # was on its way
    assert rig.terminal.finish_reason == CANCELLED
    assert rig.link.text(1) == ""


async def test_a_cancel_beats_the_submit_it_came_with(rig: Rig) -> None:
    rig.receive(submit(1), cancels=[{"slot": 1, "attempt": 1}])
    assert not rig.engine.submitted
    assert rig.terminal.finish_reason == CANCELLED


async def test_a_cancel_overtakes_the_chunks_of_its_submit(rig: Rig) -> None:
    rig.receive(submit(1, prompt_tokens=5, pending_chunks=2))
    rig.receive(chunks=[{"slot": 1, "attempt": 1, "token_ids": [4]}])
    rig.receive(cancels=[{"slot": 1, "attempt": 1}])
    rig.receive(chunks=[{"slot": 1, "attempt": 1, "token_ids": [5]}])
    assert not rig.engine.submitted
    assert rig.terminal.finish_reason == CANCELLED


async def test_a_cancel_of_an_older_attempt_changes_nothing(rig: Rig) -> None:
    rig.receive(submit(1, attempt=2))
    rig.receive(cancels=[{"slot": 1, "attempt": 1}])
    assert not rig.engine.aborted
    assert not rig.link.terminals


async def test_chunks_make_one_prompt(rig: Rig) -> None:
    rig.receive(submit(1, prompt_tokens=6, pending_chunks=2))
    rig.receive(chunks=[{"slot": 1, "attempt": 1, "token_ids": [4]}])
    assert not rig.engine.submitted
    rig.receive(chunks=[{"slot": 1, "attempt": 1, "token_ids": [5, 6]}])
    assert rig.engine.submitted[0].token_ids == [1, 2, 3, 4, 5, 6]


async def test_a_slot_in_use_is_refused_and_its_owner_unharmed(rig: Rig) -> None:
    rig.receive(submit(1))
    rig.receive(submit(1, attempt=2))
    assert rig.terminal.attempt == 2
    assert rig.terminal.failure.reason == common_pb2.REASON_INVALID_ARGUMENT
    rig.step((rig.key(), (5,)))
    assert rig.link.text(1) == " w5"


async def test_a_slot_is_free_again_after_its_terminal(rig: Rig) -> None:
    rig.receive(submit(1))
    rig.step((rig.key(), (5,)), finished=[Finished(rig.key(), LENGTH)])
    rig.receive(submit(1, attempt=2))
    rig.step((rig.key(), (6,)))
    assert list(rig.link.steps[-1].attempts) == [2]


async def test_a_broken_link_aborts_everything_at_once(rig: Rig) -> None:
    rig.receive(submit(1), submit(2), submit(3, prompt_tokens=9, pending_chunks=1))
    rig.session.closed("gone")
    assert sorted(rig.engine.aborted) == [rig.key(0), rig.key(1)]
    assert rig.dispatcher.running == 0
    assert rig.ended == [rig.session]
    assert not rig.link.sent


async def test_a_resume_goes_on_behind_what_the_client_has(rig: Rig) -> None:
    rig.receive(submit(1, (1, 2, 5, *SPLIT[:2]), prompt_tokens=2, emitted_chars=3, attempt=2))
    rig.step((rig.key(), (SPLIT[2],)))
    assert rig.link.text(1) == "😀"
    assert rig.engine.submitted[0].prompt_tokens == 2


async def test_a_resume_gives_first_what_the_client_still_lacks(rig: Rig) -> None:
    rig.receive(submit(1, (1, 2, 5, 6), prompt_tokens=2, emitted_chars=1, attempt=2))
    assert rig.link.text(1) == "w5 w6"


@pytest.mark.parametrize(
    ("fields", "reason", "rest"),
    [
        ({"max_tokens": 0}, LENGTH, "O"),
        ({"max_tokens": 5, "sampling": {"stop": ["w5"]}, "emitted_chars": 0}, STOP, " "),
    ],
)
async def test_a_resume_that_lost_only_the_last_word_ends_at_once(
    rig: Rig, fields: dict[str, Any], reason: int, rest: str
) -> None:
    ids = (1, 2, STO) if reason == LENGTH else (1, 2, 5)
    rig.receive(submit(1, ids, **{"prompt_tokens": 2, "emitted_chars": 2, **fields}))
    assert not rig.engine.submitted
    assert rig.link.text(1) == rest
    assert rig.terminal.finish_reason == reason


async def test_a_client_that_has_more_than_the_ids_give_cannot_be_continued(rig: Rig) -> None:
    rig.receive(submit(1, (1, 2, 5), prompt_tokens=2, emitted_chars=99))
    assert rig.terminal.failure.reason == common_pb2.REASON_RESUME_IMPOSSIBLE


@pytest.mark.parametrize(
    ("fields", "reason", "says"),
    [
        ({"model": "other"}, common_pb2.REASON_NOT_RESIDENT, "other"),
        ({"residency_epoch": 4}, common_pb2.REASON_NOT_RESIDENT, "epoch 5, not 4"),
        ({"max_tokens": 98}, common_pb2.REASON_CONTEXT_LENGTH_EXCEEDED, "make 101, but .* 100 tokens"),
        ({"max_tokens": 0}, common_pb2.REASON_INVALID_ARGUMENT, "max_tokens"),
        ({"prompt_tokens": 4}, common_pb2.REASON_INVALID_ARGUMENT, "prompt_tokens"),
        ({"prompt_tokens": 0}, common_pb2.REASON_INVALID_ARGUMENT, "prompt_tokens"),
        ({"ids": (1, 9_999)}, common_pb2.REASON_INVALID_ARGUMENT, "9999 is not in the vocabulary"),
        ({"sampling": {"stop": [""]}}, common_pb2.REASON_INVALID_ARGUMENT, "stop"),
        ({"sampling": {"logprobs": 1}}, common_pb2.REASON_UNSUPPORTED, "logprobs"),
        ({"sampling": {"json_schema": "{}"}}, common_pb2.REASON_UNSUPPORTED, "json_schema"),
    ],
)
async def test_what_cannot_run_is_refused_with_its_reason(
    rig: Rig, fields: dict[str, Any], reason: int, says: str
) -> None:
    rig.receive(submit(1, **fields))
    assert not rig.engine.submitted
    assert rig.terminal.finish_reason == FAILED
    assert rig.terminal.failure.reason == reason
    with pytest.raises(FleetError, match=says):
        raise FleetError.from_failure(rig.terminal.failure)


async def test_a_model_on_its_way_out_takes_nothing_new_once_that_got_round(rig: Rig) -> None:
    rig.resident.state = State.STATE_UNLOADING
    rig.receive(submit(1))
    assert not rig.link.terminals
    rig.resident.closed = True
    rig.receive(submit(2))
    assert rig.terminal.failure.reason == common_pb2.REASON_NOT_RESIDENT
    assert rig.resident.running == 1


async def test_a_draining_worker_takes_nothing_new(rig: Rig) -> None:
    rig.dispatcher.refuse_with = FleetError(common_pb2.REASON_DRAINING, "draining")
    rig.receive(submit(1))
    assert rig.terminal.failure.reason == common_pb2.REASON_DRAINING


async def test_more_than_the_limit_is_shed() -> None:
    rig = Rig(queue_limit=1)
    rig.receive(submit(1), submit(2))
    assert len(rig.engine.submitted) == 1
    assert (rig.terminal.slot, rig.terminal.failure.reason) == (2, common_pb2.REASON_QUEUE_FULL)


async def test_a_deadline_ends_the_sequence_and_frees_it(rig: Rig) -> None:
    rig.receive(submit(1, context={"deadline_ms": 10}))
    while not rig.link.terminals:
        await asyncio.sleep(0.001)
    assert rig.terminal.failure.reason == common_pb2.REASON_DEADLINE_EXCEEDED
    assert rig.engine.aborted == [rig.key()]


async def test_a_failed_engine_says_so_and_keeps_back_unfinished_text(rig: Rig) -> None:
    rig.receive(submit(1))
    rig.step((rig.key(), SPLIT[:2]))
    failure = FleetError(common_pb2.REASON_ENGINE_FAILED, "it died")
    rig.step(finished=[Finished(rig.key(), FAILED, failure=failure)])
    assert rig.link.text(1) == ""
    assert rig.terminal.failure.reason == common_pb2.REASON_ENGINE_FAILED


async def test_reservations_count_as_admitted_even_when_the_submit_is_refused(rig: Rig) -> None:
    rig.receive(submit(1, reservation_id="a"), submit(2, model="other", reservation_id="b"))
    assert rig.admitted == ["a", "b"]
