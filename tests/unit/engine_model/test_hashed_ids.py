"""The next id depends on every id before it, and on nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.core.engine_model import Alphabet, HashedIds

TOKENS = [b"", *(f" word{i}".encode() for i in range(500)), b"\xf0\x9f", b"\x98", b"\x80", b"</s>"]
ALPHABET = Alphabet(TOKENS, special_ids={504})


def generate(ids: list[int], count: int) -> list[int]:
    source = HashedIds(ALPHABET, ids)
    return [token for _ in range(count) if (token := source.next()) is not None]


@given(st.lists(st.integers(0, 500), min_size=1, max_size=50), st.integers(0, 40))
def test_a_resumed_sequence_goes_on_alike(prompt: list[int], resumed_after: int) -> None:
    whole = generate(prompt, 40)
    assert generate(prompt + whole[:resumed_after], 40 - resumed_after) == whole[resumed_after:]


@given(st.lists(st.integers(0, 500), min_size=2, max_size=50), st.data())
def test_a_lost_id_changes_what_follows(prompt: list[int], data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, len(prompt) - 1))
    assert generate(prompt, 20) != generate(prompt[:lost] + prompt[lost + 1 :], 20)


def test_only_tokens_with_text_are_drawn_and_parts_of_characters_among_them() -> None:
    drawn = set(generate([1], 5_000))
    assert 0 not in drawn
    assert 504 not in drawn
    assert {501, 502, 503} <= drawn


def test_answers_end_at_the_mean_length_on_average_and_not_before_the_least() -> None:
    lengths = []
    for prompt in range(400):
        source = HashedIds(ALPHABET, [prompt], mean_output_tokens=50, min_tokens=10)
        length = 0
        while source.next() is not None:
            length += 1
        lengths.append(length)
    assert min(lengths) >= 10
    assert 50 < sum(lengths) / len(lengths) < 70


def test_without_a_mean_an_answer_never_ends() -> None:
    assert len(generate([3], 5_000)) == 5_000
