"""The parts of the llama.cpp adapter that need no llama.cpp."""

import json
from typing import Any

import pytest

from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import Generation
from tokenfleet.worker.engines.llamacpp.recovery import Recovery
from tokenfleet.worker.engines.llamacpp.request import check_supported, completion_body
from tokenfleet.worker.engines.llamacpp.scheduler import HEADROOM, MARGIN_PER_SLOT, Job, Scheduler
from tokenfleet.worker.engines.llamacpp.step_clock import StepClock
from tokenfleet.worker.engines.resuming import resumed_seed
from tokenfleet.worker.engines.step_log import Step, StepLog


def generation(key: int = 1, prompt: int = 100, generated: int = 0, **sampling: Any) -> Generation:
    ids = list(range(prompt + generated))
    return Generation(key, ids, prompt, 50, common_pb2.SamplingParams(**sampling))


def body(asked: Generation) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(completion_body(asked))
    return parsed


def test_what_the_caller_leaves_out_is_neutral() -> None:
    asked = body(generation())
    assert (asked["temperature"], asked["top_p"], asked["top_k"], asked["min_p"]) == (1.0, 1.0, 0, 0.0)
    assert asked["repeat_penalty"] == 1.0
    assert "seed" not in asked
    assert "n_probs" not in asked


def test_an_explicit_zero_is_not_taken_for_absent() -> None:
    assert body(generation(temperature=0.0))["temperature"] == 0.0
    assert body(generation(logprobs=0))["n_probs"] == 1


def test_the_likeliest_token_is_taken_without_a_look_at_the_others() -> None:
    asked = body(generation(temperature=0.0, top_k=50, top_p=0.5, min_p=0.1, repetition_penalty=1.5))
    assert (asked["samplers"], asked["top_k"]) == (["penalties", "top_k"], 1)
    assert body(generation(temperature=0.5, top_k=50))["top_k"] == 50


def test_parameters_have_llama_cpp_s_names() -> None:
    asked = body(generation(repetition_penalty=1.5, logit_bias={7: -2.0}, json_schema='{"type": "object"}'))
    assert asked["repeat_penalty"] == 1.5
    assert asked["logit_bias"] == [[7, -2.0]]
    assert asked["json_schema"] == {"type": "object"}


def test_a_seed_goes_on_reproducibly_and_differs_by_what_was_emitted() -> None:
    seeds = [resumed_seed(42, emitted) for emitted in range(50)]
    assert len(set(seeds)) == 50
    assert body(generation(generated=7, seed=42))["seed"] == seeds[7]
    assert all(0 <= seed < 2**32 - 1 for seed in seeds)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (generation(json_schema="{"), common_pb2.REASON_INVALID_ARGUMENT),
        (generation(json_schema="{}", generated=3), common_pb2.REASON_RESUME_IMPOSSIBLE),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(asked: Generation, reason: int) -> None:
    with pytest.raises(FleetError) as caught:
        check_supported(asked)
    assert caught.value.reason == reason


TOKENS = [b"", b"a", b"\xf0", b"\x9f", b"\x8e", b"\x89", b"\xf0\x9f", b"\x8e\x89", b"\x9f\x8e", b" \xf0\x9f"]


@pytest.mark.parametrize(
    ("text", "count", "last", "ids"),
    [
        ("🎉", 2, 5, [6, 4]),  # not [2, 8]: the merge with the lower id comes first
        ("🎉", 1, 7, [6]),
        ("🎉", 3, 5, [2, 3, 4]),
        (" 🎉", 1, 7, [9]),
        ("🎉", 1, 1, []),  # does not end with its last token
        ("\N{REPLACEMENT CHARACTER}a", 1, 1, []),  # bytes that were no character
    ],
)
def test_untold_ids_are_found_by_their_bytes(text: str, count: int, last: int, ids: list[int]) -> None:
    assert Recovery(TOKENS).missing(text, count, last) == ids


def job(key: int, prompt: int, budget: int = 1_000, **sampling: Any) -> Job:
    asked = Generation(key, [0] * prompt, prompt, budget, common_pb2.SamplingParams(**sampling))
    return Job(asked, 0.0)


def scheduler(slots: int = 2, room: int = 1_000) -> Scheduler:
    return Scheduler(slots, room + MARGIN_PER_SLOT * slots)


def started(plan: Scheduler) -> list[int]:
    keys = []
    while (one := plan.next()) is not None:
        keys.append(one.key)
    return keys


def test_sequences_start_in_order_while_there_are_slots() -> None:
    plan = scheduler(slots=2)
    for key in (1, 2, 3):
        plan.add(job(key, 10))
    assert started(plan) == [1, 2]
    plan.remove(1)
    assert started(plan) == [3]


def test_a_long_prompt_waits_for_room_and_is_not_overtaken() -> None:
    plan = scheduler(slots=8, room=1_000)
    for key, prompt in ((1, 500), (2, 480), (3, 10)):
        plan.add(job(key, prompt))
    assert started(plan) == [1]
    plan.remove(1)
    assert started(plan) == [2, 3]


def test_one_alone_always_runs() -> None:
    plan = scheduler(room=1_000)
    plan.add(job(1, 999, budget=1))
    assert started(plan) == [1]
    plan.grew(50)
    assert plan.victim() is None


def test_the_youngest_is_taken_out_when_answers_fill_the_cache_and_comes_back_first() -> None:
    plan = scheduler(slots=3, room=1_000)
    jobs = [job(key, 300) for key in (1, 2, 3)]
    for one in jobs:
        plan.add(one)
    assert started(plan) == [1, 2, 3 if 3 * 300 + HEADROOM <= 1_000 else 0]
    plan.add(job(4, 10))
    jobs[2].emitted += [7] * 120
    plan.grew(120)
    victim = plan.victim()
    assert victim is jobs[2]
    plan.take_out(victim)
    assert plan.held == 600
    assert plan.victim() is None
    assert started(plan) == []  # it needs more room than there is, and nobody overtakes it
    plan.remove(1)
    resumed = plan.next()
    assert resumed is victim
    again = resumed.next_run()
    assert (len(again.token_ids), again.prompt_tokens, again.max_tokens) == (420, 300, 880)
    assert plan.held == 720


def test_a_sequence_with_a_grammar_is_never_taken_out() -> None:
    plan = scheduler(slots=2, room=600)
    plan.add(job(1, 200))
    plan.add(job(2, 200, json_schema="{}"))
    assert len(started(plan)) == 2
    plan.grew(300)
    victim = plan.victim()
    assert victim is not None
    assert victim.key == 1


def test_steps_are_recognised_by_who_speaks_again() -> None:
    log = StepLog()
    clock = StepClock(log)
    clock.began(0.0)
    clock.spoke(0.5, 1, 64, prefilled=64)
    clock.spoke(1.0, 1, 100)  # ends the prefill step
    clock.spoke(1.3, 2, 150)
    clock.spoke(2.0, 1, 151)  # ends the step of 1 and 2
    clock.idle()
    clock.spoke(9.0, 1, 10)
    clock.spoke(9.5, 1, 11)
    assert log.since(0) == [Step(1.0, 0, 64, 100), Step(1.0, 2, 0, 151), Step(0.5, 1, 0, 11)]
