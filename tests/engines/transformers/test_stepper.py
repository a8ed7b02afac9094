"""Batches through a real, tiny model: rows must not feel each other, whatever comes, ends and is cached."""

from typing import Any

import pytest

from tests.engines.installed import needs
from tests.engines.transformers.tiny import BLOCK, EOS, Engine, answer, model, prompt
from tokenfleet.core.blocks import block_hashes
from tokenfleet.worker.engines.hosted.stepping import RefusedError

pytestmark = needs("torch", "transformers")

LENGTHS = (5, 1, 40, 23, 8, 17)


def test_an_answer_is_what_transformers_itself_generates() -> None:
    import torch

    ids = prompt(1, 12)
    whole = model().generate(
        torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert answer(ids, 8) == whole[0, 12:].tolist()


@pytest.mark.parametrize("chunk", [4_096, 24])
def test_a_batch_of_any_lengths_answers_as_each_alone(chunk: int) -> None:
    engine = Engine(chunk=chunk)
    budgets = (6, 12, 3, 9, 1, 12)
    for key, (length, budget) in enumerate(zip(LENGTHS, budgets, strict=True)):
        engine.submit(key, prompt(key, length), budget)
    together = engine.run()
    assert together == {
        key: answer(prompt(key, length), budget)
        for key, (length, budget) in enumerate(zip(LENGTHS, budgets, strict=True))
    }
    assert len(engine.said("admitted")) == len(LENGTHS)
    assert {how for _, how, _ in engine.said("finished")} == {"length"}
    assert sum(report.prefill_tokens for report in engine.reports) == sum(LENGTHS)
    assert max(report.batch for report in engine.reports) == len(LENGTHS)


def test_rows_that_end_early_free_their_part_of_the_cache() -> None:
    engine = Engine()
    engine.submit(1, prompt(1, 100), 2)
    engine.submit(2, prompt(2, 60), 30)
    held = [(engine.step().kv_tokens, sorted(engine.ids)) for _ in range(4)]
    assert [tokens for tokens, _ in held[:1]] == [200]
    assert held[1][0] < 70  # one row, and without the columns that only the other one needed
    assert engine.run()[2] == answer(prompt(2, 60), 30)
    assert engine.reports[-1].kv_tokens == 0


def test_an_answer_ends_at_the_end_token_which_is_not_delivered() -> None:
    ids = next(ids for seed in range(200) if EOS in answer(ids := prompt(seed, 9), 20)[1:])
    whole = answer(ids, 20)
    engine = Engine()
    engine.submit(1, ids, 20, ignore_eos=False)
    assert engine.run()[1] == whole[: whole.index(EOS)]
    assert engine.said("finished") == [(1, "stop", None)]
    later = answer(ids, 20, ignore_eos=False, min_tokens=whole.index(EOS) + 3)
    assert len(later) >= whole.index(EOS) + 3
    assert later[: whole.index(EOS)] == whole[: whole.index(EOS)]


def test_who_comes_while_a_batch_runs_waits_for_the_next() -> None:
    engine = Engine(window_s=0.03)
    engine.submit(1, prompt(1, 5), 3)
    assert engine.stepper.wait_s() == pytest.approx(0.03)
    engine.now = 0.03
    engine.step()
    engine.submit(2, prompt(2, 5), 1)
    engine.step()
    assert engine.reports[-1].queued_prefill_tokens == 5
    engine.step()
    assert 2 not in engine.ids
    assert engine.run()[2] == answer(prompt(2, 5), 1)


def test_an_aborted_row_leaves_the_batch_and_nobody_else_notices() -> None:
    engine = Engine(chunk=30)
    for key in (1, 2, 3):
        engine.submit(key, prompt(key, 20), 10)
    engine.step()  # a part of the prompts
    engine.stepper.abort(1)
    engine.step()
    engine.step()
    engine.stepper.abort(2)
    engine.stepper.abort(77)
    got = engine.run()
    assert 1 not in got
    assert got[3] == answer(prompt(3, 20), 10)
    assert [key for key, *_ in engine.said("finished")] == [3]


def test_an_abort_while_waiting_and_of_the_whole_batch_leave_nothing() -> None:
    engine = Engine(2)
    for key in (1, 2, 3):
        engine.submit(key, prompt(key, 5), 50)
    engine.step()
    engine.stepper.abort(3)
    engine.stepper.abort(1)
    engine.stepper.abort(2)
    engine.run()
    assert engine.stepper.wait_s() is None
    assert engine.reports[-1].kv_tokens == 0
    assert engine.said("finished") == []


def test_a_known_prefix_is_not_computed_again_and_changes_nothing() -> None:
    engine = Engine(prefix_blocks=64)
    ids = prompt(1, 20)
    engine.submit(1, ids)
    engine.run()
    engine.submit(2, [*ids[:13], 5, 6, 7])
    engine.submit(3, prompt(3, 9))
    engine.submit(4, ids)
    got = engine.run()
    assert engine.said("admitted") == [(1, 0), (3, 0), (2, 12), (4, 16)]
    assert got[2] == answer([*ids[:13], 5, 6, 7])
    assert got[3] == answer(prompt(3, 9))
    assert got[4] == got[1]
    assert sum(report.prefill_tokens for report in engine.reports) == 20 + 9 + 4 + 4


def test_the_cache_says_what_it_holds_by_canonical_names_and_forgets_the_longest_unused() -> None:
    engine = Engine(prefix_blocks=6)
    ids, other = prompt(1, 17), prompt(2, 13)
    hashes, others = block_hashes(ids, BLOCK), block_hashes(other, BLOCK)
    engine.submit(1, ids)
    engine.run()
    assert engine.said("cache") == [(hashes[:4], 0)]
    engine.submit(2, other)
    engine.run()
    assert engine.said("cache")[1:] == [(others[:3], 0), ([hashes[3]], None)]
    engine.submit(3, ids)
    engine.run()
    assert engine.said("admitted")[-1] == (3, 12)
    assert engine.said("cache")[3:] == [([hashes[3]], hashes[2]), ([others[2]], None)]


def test_a_resumed_answer_goes_on_where_it_broke_off() -> None:
    whole = answer(prompt(4, 9), 10)
    assert answer([*prompt(4, 9), *whole[:4]], 6, prompt_tokens=9) == whole[4:]


def test_sampling_by_seed_does_not_depend_on_the_batch() -> None:
    hot: dict[str, Any] = {"temperature": 1.5, "top_p": 0.95, "top_k": 40, "min_p": 0.001}
    engine = Engine()
    for key in range(4):
        engine.submit(key, prompt(key, 5 + key), 8, seed=key, **hot)
    got = engine.run()
    for key in range(4):
        assert got[key] == answer(prompt(key, 5 + key), 8, seed=key, **hot)
    assert answer(prompt(0, 5), 8, seed=99, **hot) != got[0]


def test_log_probabilities_come_with_each_token() -> None:
    engine = Engine()
    engine.submit(1, prompt(1, 5), 3, logprobs=2)
    engine.submit(2, prompt(2, 5), 3)
    got = engine.run()
    records = engine.said("logprobs")
    assert [(key, token) for key, token, *_ in records] == [(1, token) for token in got[1]]
    for _, token, logprob, top in records:
        assert top[0] == (token, pytest.approx(logprob))
        assert top[0][1] >= top[1][1]
        assert logprob <= 0


def test_what_does_not_fit_into_the_cache_is_refused_by_its_reason() -> None:
    with pytest.raises(RefusedError, match="10000 tokens") as caught:
        Engine().submit(1, prompt(1, 5), 20_000)
    assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"
