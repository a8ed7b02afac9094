"""A choice among few replicas, in plain numbers: below some dozens that is sooner than vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tokenfleet.core.scheduling.board import Board
from tokenfleet.core.scheduling.choice import Choice, Forecasts, forecast_of, why
from tokenfleet.core.scheduling.cost import EQUAL, LEAST_WAIT, Asked, Parts, parts_of
from tokenfleet.core.scheduling.policies import Draw
from tokenfleet.core.scheduling.prefix_index import Run
from tokenfleet.core.scheduling.request import Request
from tokenfleet.core.scheduling.standing import Standing


def choose_among_few(
    board: Board, request: Request, asked: Asked, runs: Sequence[Run], draw: Draw
) -> Choice | None:
    """The least cost, drawn among equals; None where none is finite."""
    standings = tuple(board.standings())
    cached = _cached_tokens(board, standings, runs, asked.prompt)
    parts: list[Parts] = []
    costs: list[float] = []
    busy = 0
    for standing, known in zip(standings, cached, strict=True):
        each = parts_of(standing, asked, known)
        parts.append(each)
        costs.append(sum(each) if standing.fixed_s < math.inf else math.inf)
        busy += standing.queue_s > standing.step_s
    _rule_out(standings, request, parts, costs)
    least = min(costs)
    if least == math.inf:
        return None
    limit = least * EQUAL
    equals = [row for row, cost in enumerate(costs) if cost <= limit]
    row = equals[int(draw() * len(equals))] if len(equals) > 1 else equals[0]
    chosen = standings[row]
    return Choice(
        chosen.replica,
        why(len(equals)),
        forecast_of(chosen, asked, cached[row], parts[row], costs[row]),
        Forecasts(standings, costs, cached, asked, row),
        runs,
        busy / len(standings),
    )


def _cached_tokens(
    board: Board, standings: Sequence[Standing], runs: Sequence[Run], prompt_tokens: int
) -> Sequence[float]:
    """How much of the prompt each replica has cached."""
    if not runs:
        return (0.0,) * len(standings)
    cached = [0.0] * len(standings)
    for blocks, holders in runs:
        for number in holders.members:
            row = board.row_of.get(number)
            if row is not None:
                # the last token is computed in any case: it is what the first one of the answer needs
                cached[row] = min(blocks * standings[row].block_size, prompt_tokens - 1.0)
    return cached


def _rule_out(
    standings: Sequence[Standing], request: Request, parts: Sequence[Parts], costs: list[float]
) -> None:
    """Makes the cost infinite where the request cannot go, or should not."""
    if request.choosy:
        for row, standing in enumerate(standings):
            if not request.suits(standing.replica):
                costs[row] = math.inf
    if request.preferred is not None:
        alike = [standing.replica.fingerprint == request.preferred for standing in standings]
        if any(same and cost < math.inf for same, cost in zip(alike, costs, strict=True)):
            for row, same in enumerate(alike):
                if not same:
                    costs[row] = math.inf
    if request.ttft_objective_s < math.inf:
        _rule_out_late(request.ttft_objective_s, parts, costs)
    if request.itl_objective_s < math.inf:
        _rule_out_slow(request.itl_objective_s, standings, parts, costs)


def _rule_out_late(objective_s: float, parts: Sequence[Parts], costs: list[float]) -> None:
    """Where its turn would come too late for the objective."""
    least_s = LEAST_WAIT * objective_s
    for row, each in enumerate(parts):
        wait_s = each[0] + each[1]
        if wait_s > least_s:
            _, _, prompt_s, step_s, *_ = each
            if wait_s > objective_s - (prompt_s + step_s):
                costs[row] = math.inf


def _rule_out_slow(
    objective_s: float, standings: Sequence[Standing], parts: Sequence[Parts], costs: list[float]
) -> None:
    """Where steps are too slow now, if somewhere they would not be with less in them."""
    steps_s = [each[3] for each in parts]
    if any(
        cost < math.inf and step_s - standing.step_s + standing.idle_step_s <= objective_s
        for cost, step_s, standing in zip(costs, steps_s, standings, strict=True)
    ):
        for row, step_s in enumerate(steps_s):
            if step_s > objective_s:
                costs[row] = math.inf
