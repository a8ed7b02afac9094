"""Recorded traffic: what one cache for all would reuse of it, and what a fleet does."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scheduler.trace import BLOCK_TOKENS, fleet_reuse, read_trace, unlimited_share


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def request(at_ms: int, hashes: list[int], extra_tokens: int = 10) -> dict[str, Any]:
    tokens = len(hashes) * BLOCK_TOKENS + extra_tokens
    return {
        "timestamp": at_ms,
        "input_length": tokens,
        "output_length": 5,
        "hash_ids": [*hashes, 10**6 + at_ms],
    }


def test_a_prompt_has_what_an_earlier_one_began_with(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", request(60_000, [1, 2, 3]), request(0, [1, 2]), request(1, [4, 2]))
    arrivals = read_trace(path)
    assert [arrival.at for arrival in arrivals] == [0.0, 0.001, 60.0]
    assert [list(arrival.block_hashes) for arrival in arrivals] == [[1, 2], [4, 2], [1, 2, 3]]
    share = 2 * BLOCK_TOKENS / (7 * BLOCK_TOKENS + 30)
    assert unlimited_share(arrivals) == pytest.approx(share)


def test_a_fleet_reuses_a_long_prompt_that_comes_again_and_again(tmp_path: Path) -> None:
    prompt = list(range(20))
    arrivals = read_trace(write(tmp_path / "t.jsonl", *(request(3000 * n, prompt) for n in range(30))))
    reuse = fleet_reuse(arrivals, 8_000.0)
    assert reuse.completed == 1.0
    assert 0.9 < reuse.of_unlimited <= 1.0


def test_of_one_prompt_sent_twice_the_last_token_is_computed(tmp_path: Path) -> None:
    arrivals = read_trace(write(tmp_path / "t.jsonl", request(0, [1], 0), request(1, [1], 0)))
    assert unlimited_share(arrivals) == pytest.approx((BLOCK_TOKENS - 1) / (2 * BLOCK_TOKENS))


@pytest.mark.parametrize("line", ["nonsense", {"timestamp": 1}, request(0, []) | {"input_length": "7"}])
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: Any) -> None:
    with pytest.raises(ValueError, match="line 2"):
        read_trace(write(tmp_path / "t.jsonl", request(0, [1]), line))
