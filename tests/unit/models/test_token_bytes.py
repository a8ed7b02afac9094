from array import array
from itertools import accumulate

import pytest

from tokenfleet.runtime.models.token_bytes import TokenBytes

CONTENTS = [b"", b" hello", b"\xf0\x9f", b"", b"world"]


def packed(contents: list[bytes]) -> TokenBytes:
    return TokenBytes(b"".join(contents), array("I", accumulate(map(len, contents))))


def test_it_is_the_sequence_that_it_was_made_of() -> None:
    made = packed(CONTENTS)
    assert list(made) == [made[index] for index in range(len(made))] == CONTENTS
    assert made[1:3] == CONTENTS[1:3]
    assert made[-2:] == CONTENTS[-2:]
    assert b"world" in made
    assert b"ello" not in made


@pytest.mark.parametrize("contents", [CONTENTS, []])
def test_behind_the_last_token_there_is_none(contents: list[bytes]) -> None:
    with pytest.raises(IndexError):
        packed(contents)[len(contents)]
