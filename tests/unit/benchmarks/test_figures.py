"""The results file: one shape for all benchmarks, the figures' names, and nothing from a row that failed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks._measure import GENERATOR, Window
from benchmarks._report import Report, rounded
from benchmarks.gateway.figures import figures_of
from benchmarks.gateway.plan import ROWS, STREAM_TOKENS, Row, paces_ms
from benchmarks.gateway.plots import apart, draw
from benchmarks.gateway.rows import RowResult, summarize
from benchmarks.gateway.systems import System, catalog_of_paces
from loadtest.driver.stats import Snapshot

FLEET = System("tokenfleet", "sim", "frames", "127.0.0.1", 1, {"gateway": [], "worker": []})
BARE = System("bare", "none", "none", "127.0.0.1", 1, {"gateway": []})


def window(
    row: Row, *, gateway_s: float = 1.0, load_core_busy: float = 0.4, itl_s: float | None = None
) -> Window:
    """Ten seconds in which 100,000 tokens arrived, or 1,000 answers of one."""
    return Window(
        seconds=10.0,
        cpu_s={"gateway": gateway_s, "tokenizer": 0.3, "router": 0.1, "worker": 0.5, GENERATOR: 0.5},
        measured_core_busy=0.2,
        load_core_busy=load_core_busy,
        resident_mb=80.0,
        requests=1_000,
        answered_tokens=1_000 * row.tokens,
        frames=98_000 if row.stream else 0,
        frames_per_token=0.98 if row.stream else 0.0,
        ttft_s=[0.006] * 99 + [0.011] if row.stream else [],
        itl_s=[itl_s or row.itl_ms / 1000] if row.stream else [],
        worst_gap_s=[0.05] if row.stream else [],
        latency_s=[0.1],
    )


def final(row: Row, *, frames_per_token: float = 0.98, **errors: int) -> Snapshot:
    tokens = 3_000 * row.tokens
    frames = round(tokens * frames_per_token) if row.stream else 0
    return Snapshot(
        finished=3_000,
        finished_tokens=tokens,
        finished_frames=frames,
        failed=sum(errors.values()),
        errors=errors,
    )


def result(name: str, system: System = FLEET, **changes: float) -> RowResult:
    row = ROWS[name]
    costs = (2.0, 1.0, 1.5)
    return summarize(
        row, system, [window(row, gateway_s=cost, **changes) for cost in costs], final(row), 90.0
    )


def test_the_figures_that_are_quoted_elsewhere_all_have_their_names() -> None:
    figures = figures_of([result(name) for name in ROWS])
    assert set(figures) >= {
        *(f"gateway_cpu_us_per_token@{n}" for n in (64, 256, 1000)),
        *(f"frames_per_token@{n}" for n in (64, 256, 1000)),
        *(f"gateway_cpu_us_per_token/k={k}" for k in (2, 8, 64)),
        *("fleet_cpu_us_per_request", "gateway_rss_mb@1000"),
        *("added_ttft_ms_p50@64", "added_ttft_ms_p99@64"),
    }


def test_figures_are_medians_of_the_windows() -> None:
    figures = figures_of([result("256"), result("256", BARE), result("requests")])
    assert figures["gateway_cpu_us_per_token@256"] == pytest.approx(15.0)
    assert figures["gateway_cpu_us_per_token/k=64"] == pytest.approx(15.0)
    assert figures["gateway_over_bare@256"] == pytest.approx(1.0)
    assert figures["added_ttft_ms_p50@256"] == pytest.approx(1.0)
    # gateway 1.5 s, tokenizer 0.3 s and router 0.1 s for 1,000 requests
    assert figures["fleet_cpu_us_per_request"] == pytest.approx(1_900.0)


def test_a_token_counts_also_when_its_text_shared_a_frame() -> None:
    row = ROWS["256"]
    assert window(row).tokens == pytest.approx(100_000)
    assert window(ROWS["requests"]).tokens == 1_000


@pytest.mark.parametrize(
    ("changes", "errors", "frames_per_token", "reason"),
    [
        ({}, {"HTTP 503": 1}, 0.98, "1 × HTTP 503"),
        ({"load_core_busy": 0.97}, {}, 0.98, "97% busy"),
        ({"itl_s": 0.022}, {}, 0.98, "22.0 ms instead of 20"),
        ({}, {}, 0.9, "tokens were merged"),
    ],
)
def test_a_row_that_says_nothing_about_the_gateway_gives_no_cost(
    changes: dict[str, float], errors: dict[str, int], frames_per_token: float, reason: str
) -> None:
    row = ROWS["256"]
    end = final(row, frames_per_token=frames_per_token, **errors)
    judged = summarize(row, FLEET, [window(row, **changes)], end, 90.0)
    assert not judged.valid
    assert any(reason in problem for problem in judged.problems)
    assert set(figures_of([judged])) == {"frames_per_token@256", "load_core_busy@256"}


def test_a_full_core_under_a_closed_loop_of_requests_is_no_problem_unless_the_generator_fills_it() -> None:
    row = ROWS["requests"]
    busy = window(row, load_core_busy=1.0)
    greedy = replace(busy, cpu_s={**busy.cpu_s, GENERATOR: 6.0})
    assert summarize(row, FLEET, [busy], final(row), 90.0).valid
    assert not summarize(row, FLEET, [greedy], final(row), 90.0).valid


def test_a_row_without_any_answer_is_not_valid_and_breaks_nothing() -> None:
    row = ROWS["64"]
    empty = replace(
        window(row),
        requests=0,
        frames=0,
        frames_per_token=0.0,
        answered_tokens=0,
        ttft_s=[],
        itl_s=[],
        latency_s=[],
    )
    judged = summarize(row, FLEET, [empty], Snapshot(errors={"HTTP 404": 5}, failed=5), 90.0)
    assert judged.problems == ("5 × HTTP 404", "no request was answered")


def test_a_window_without_tokens_spoils_the_row() -> None:
    row = ROWS["64"]
    dead = replace(window(row), frames=0)
    judged = summarize(row, FLEET, [window(row), dead], final(row), 90.0)
    assert judged.problems == ("no token was counted in a whole window",)


def test_the_results_file_has_the_agreed_shape(tmp_path: Path) -> None:
    results = [result(name) for name in ROWS]
    report = Report(
        "python -m benchmarks.gateway", figures_of(results), [r.as_dict() for r in results], {"a": "1"}
    )
    report.write(tmp_path / "deep" / "gateway.json")
    written = json.loads((tmp_path / "deep" / "gateway.json").read_text(encoding="utf-8"))
    assert list(written) == ["machine", "versions", "command", "date", "figures", "rows"]
    assert all(isinstance(value, int | float) for value in written["figures"].values())
    assert {row["engine"] for row in written["rows"]} == {"sim"}
    assert all(row["valid"] and row["problems"] == [] for row in written["rows"])
    assert written["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    "figures", [{"x": float("nan")}, {"x": float("inf")}, {"Bad Name": 1.0}, {"x@": 1.0}, {"": 1.0}]
)
def test_a_bad_figure_is_refused(figures: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="figure"):
        Report("c", figures, []).as_dict()


def test_four_digits_are_kept() -> None:
    assert (rounded(16.23456), rounded(0.000123456), rounded(98765.4)) == (16.23, 0.0001235, 98770.0)


def test_every_pace_has_a_model_and_every_row_a_pace() -> None:
    models = catalog_of_paces()["models"]
    assert isinstance(models, list)
    assert {model["name"] for model in models} == {row.model for row in ROWS.values()}
    assert len(models) == len(paces_ms())
    assert all(row.tokens == STREAM_TOKENS for row in ROWS.values() if row.stream)


def test_pictures_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    drawn = draw([result("256"), result("256", BARE), result("1000"), result("k2")], tmp_path, "gateway")
    assert {path.name for path in drawn} == {"gateway-cpu.png", "gateway-ttft.png", "gateway-sharing.png"}
    assert all(path.stat().st_size > 10_000 for path in drawn)
    assert draw([result("requests")], tmp_path, "gateway") == []


def test_labels_keep_their_order_and_their_distance() -> None:
    assert apart([37.0, 35.0, 34.5, 20.0], 1.0) == [37.0, 35.5, 34.5, 20.0]
