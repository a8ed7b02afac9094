"""An explanation as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenfleet.cli.console import plain_or_coloured
from tokenfleet.cli.explain import AttemptRow, CandidateRow, Deviation, Happened

NOTHING = "–"
# Share of a cost below which a part of it is left out.
LEAST_PART = 0.02
UNPREDICTED = CandidateRow(
    worker="",
    zone="",
    running=0,
    waiting=0,
    ttft_s=None,
    step_s=None,
    cost_s=None,
    cached_tokens=None,
    veto="",
)
UNCOMPARED = Deviation(ttft_s=None, itl_s=None, cached_tokens=None)


def print_explanation(
    request_id: str, attempts: Sequence[AttemptRow], console: Console | None = None
) -> None:
    """For each attempt: the decision, who was considered, and what was predicted against what happened."""
    console = console or plain_or_coloured()
    console.print(f"request [bold]{escape(request_id)}[/bold]   model {escape(attempts[0].model)}")
    for row in attempts:
        console.print()
        console.print(_headline(row))
        console.print(f"  {_circumstances(row)}", style="dim", markup=False)
        if row.candidates:
            console.print()
            console.print(_candidates(row))
        if row.refusal:
            continue
        console.print()
        if row.happened is None:
            console.print("it has not ended, or its gateway is gone: what happened is not known")
            continue
        console.print(_comparison(row, row.happened))
        console.print(_ending(row.happened))


def _headline(row: AttemptRow) -> str:
    where = f"[red]{row.refusal}[/red]" if row.refusal else f"[bold]{escape(row.worker)}[/bold]"
    return f"attempt {row.attempt} → {where}: {escape(row.why)}"


def _circumstances(row: AttemptRow) -> str:
    waited = f"waited {_seconds(row.waited_s)} in the queue" if row.waited_s else "did not wait"
    decided = f", decided in {row.decided_in_us:.0f} µs" if row.decided_in_us else ""
    return f"policy {row.policy}, {waited}{decided}"


def _candidates(row: AttemptRow) -> Table:
    drawn = _table(
        "", "candidate", "zone", "running", "waiting", "cached", "TTFT", "step", "cost", "of which"
    )
    for candidate in row.candidates:
        chosen = candidate.worker == row.worker
        drawn.add_row(
            "→" if chosen else "",
            escape(candidate.worker),
            escape(candidate.zone),
            str(candidate.running),
            str(candidate.waiting),
            _count(candidate.cached_tokens),
            _seconds(candidate.ttft_s),
            _seconds(candidate.step_s),
            _seconds(candidate.cost_s),
            escape(candidate.veto)
            + (": " if candidate.veto and candidate.parts_s else "")
            + _parts(candidate)
            or ("chosen" if chosen else ""),
        )
    return drawn


def _parts(candidate: CandidateRow) -> str:
    """What most of its cost is made of."""
    least = LEAST_PART * (candidate.cost_s or 0.0)
    most = {name: seconds for name, seconds in candidate.parts_s.items() if seconds >= least}
    return ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in most.items())


def _comparison(row: AttemptRow, happened: Happened) -> Table:
    drawn = _table("", "predicted", "happened", "off by")
    predicted = row.predicted or UNPREDICTED
    deviation = row.deviation or UNCOMPARED
    for name, before, after, off in (
        ("TTFT", predicted.ttft_s, happened.ttft_s, deviation.ttft_s),
        ("ITL", predicted.step_s, happened.itl_s, deviation.itl_s),
    ):
        drawn.add_row(name, _seconds(before), _seconds(after), _off(off, before))
    cached = deviation.cached_tokens
    drawn.add_row(
        "cached tokens",
        _count(predicted.cached_tokens),
        _count(happened.cached_tokens),
        NOTHING if cached is None else f"{cached:+,}",
    )
    return drawn


def _ending(happened: Happened) -> str:
    colour = "green" if happened.outcome == "finished" else "yellow"
    tokens = "1 token" if happened.completion_tokens == 1 else f"{happened.completion_tokens:,} tokens"
    return f"[{colour}]{happened.outcome.replace('_', ' ')}[/{colour}] after {tokens}"


def _off(seconds: float | None, predicted: float | None) -> str:
    if seconds is None:
        return NOTHING
    share = f" ({seconds / predicted:+.0%})" if predicted else ""
    return f"{'+' if seconds >= 0 else '-'}{_seconds(abs(seconds))}{share}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _count(count: int | None) -> str:
    return NOTHING if count is None else f"{count:,}"


def _table(*columns: str) -> Table:
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in columns:
        text = column in ("", "candidate", "zone", "of which")
        drawn.add_column(column, justify="left" if text else "right")
    return drawn
