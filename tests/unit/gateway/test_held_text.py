"""What waits for a slow client takes about as much memory as its text."""

import sys

from tokenfleet.gateway.held_text import keep


def test_nothing_is_lost_and_many_pieces_take_little_more_than_their_text() -> None:
    pieces: list[str] = []
    for number in range(10_000):
        keep(pieces, f"{number:05}")
    text = "".join(pieces)
    assert text == "".join(f"{number:05}" for number in range(10_000))
    assert sum(sys.getsizeof(piece) for piece in pieces) < 1.1 * len(text)
