"""Deltas as values, and the answer they add up to."""

from typing import Any

import pytest

from tokenfleet.client import Answer, Choice, Delta, Loading, StreamBroken, Usage
from tokenfleet.client.answers import Growing
from tokenfleet.v1 import common_pb2, inference_pb2

STOP, LENGTH = common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH
USAGE = common_pb2.Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=2)


def wire(**fields: Any) -> inference_pb2.Delta:
    return inference_pb2.Delta(**fields)


def test_interleaved_answers_add_up() -> None:
    growing = Growing()
    growing.add(wire(request_id="r", model="m", index=1, text="b"))
    growing.add(wire(index=0, text="a", token_ids=[1, 2]))
    growing.add(wire(index=1, text="", finish_reason=STOP))
    last = growing.add(wire(index=0, text="A", token_ids=[3], finish_reason=LENGTH, usage=USAGE))
    assert last == Delta(0, "A", (3,), "length", Usage(3, 4, 2))
    answer = growing.answer()
    assert answer == Answer(
        request_id="r",
        model="m",
        choices=(Choice("aA", "length", (1, 2, 3)), Choice("b", "stop", ())),
        usage=Usage(3, 4, 2),
    )
    assert answer.text == "aA"
    assert answer.usage.total_tokens == 7


def test_news_of_a_load_are_no_part_of_an_answer() -> None:
    growing = Growing()
    progress = common_pb2.LoadProgress(
        model="m", stage=common_pb2.LoadProgress.STAGE_WARMING_UP, bytes_done=1, bytes_total=2
    )
    delta = growing.add(wire(request_id="r", loading=progress))
    assert delta.loading == Loading("m", "warming_up", 1, 2, None)
    assert not growing.begun
    assert growing.request_id == "r"


@pytest.mark.parametrize(
    "deltas",
    [
        [],
        [wire(text="a")],
        [wire(text="a", finish_reason=STOP)],
        [wire(text="a", usage=USAGE)],
        [wire(index=0, text="a", finish_reason=STOP), wire(index=1, text="b", usage=USAGE)],
    ],
)
def test_an_end_that_is_missing_is_no_clean_end(deltas: list[inference_pb2.Delta]) -> None:
    growing = Growing()
    for delta in deltas:
        growing.add(delta)
    with pytest.raises(StreamBroken, match="ended before"):
        growing.answer()


def test_a_newer_servers_names_do_not_break_old_clients() -> None:
    growing = Growing()
    delta = growing.add(wire(text="a", finish_reason=99, usage=USAGE))
    assert delta.finish_reason == "99"
