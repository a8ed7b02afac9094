"""A choice among many replicas: the cost of `cost.parts_of`, summed for all of them at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokenfleet.core.scheduling import board as columns
from tokenfleet.core.scheduling.board import Board, Column
from tokenfleet.core.scheduling.choice import Choice, Forecasts, forecast_of, why
from tokenfleet.core.scheduling.cost import EQUAL, LEAST_WAIT, Asked, parts_of
from tokenfleet.core.scheduling.policies import Draw
from tokenfleet.core.scheduling.prefix_index import Run
from tokenfleet.core.scheduling.request import Request
from tokenfleet.core.scheduling.standing import UNKNOWN_ZONE, Standing

Cells = NDArray[np.float64]  # of a board
FORECASTS_KEPT = 16


def choose_among_many(
    board: Board, request: Request, asked: Asked, runs: Sequence[Run], draw: Draw
) -> Choice | None:
    """The least cost, drawn among equals; None where none is finite."""
    standings, cells = board.standings(), board.cells()
    cached = _cached_tokens(board, cells, runs, asked.prompt)
    cost = _cost(board, cells, asked, cached)
    _rule_out(standings, request, cost)
    if request.ttft_objective_s < math.inf:
        _rule_out_late(request.ttft_objective_s, cells, asked, cached, cost)
    if request.itl_objective_s < math.inf:
        _rule_out_slow(request.itl_objective_s, cells, asked, cost)
    least = float(cost[cost.argmin()])
    if least == math.inf:
        return None
    equals = (cost <= least * EQUAL).nonzero()[0]
    row = int(equals[int(draw() * len(equals))] if len(equals) > 1 else equals[0])
    known = 0.0 if cached is None else float(cached[row])
    busy = int(np.count_nonzero(cells[columns.QUEUE_S] > cells[columns.STEP_S]))
    chosen = standings[row]
    return Choice(
        chosen.replica,
        why(len(equals)),
        forecast_of(chosen, asked, known, parts_of(chosen, asked, known), float(cost[row])),
        _best(standings, cost, cached, asked, row),
        runs,
        busy / len(standings),
    )


def _cost(board: Board, cells: Cells, asked: Asked, cached: Column | None) -> Column:
    """In seconds, on each replica."""
    prompt, answer, zone, zone_penalty_s, delay = asked
    cost: Column = np.array((1.0, prompt, answer, prompt * answer)) @ cells[: columns.LINEAR]
    prefill = cells[columns.PREFILL_TOKEN_S]
    if delay:
        cost += (delay * prompt) * prefill
    if cached is not None:
        cost -= (1.0 + delay) * prefill * cached
    lost = prompt + answer - cells[columns.FREE]
    if lost[lost.argmax()] > 0.0:
        if cached is not None:
            lost -= cached
        cost += prefill * np.maximum(lost, 0.0)
    if zone != UNKNOWN_ZONE:
        cost += board.abroad(zone) * zone_penalty_s
    return cost


def _cached_tokens(board: Board, cells: Cells, runs: Sequence[Run], prompt_tokens: int) -> Column | None:
    """How much of the prompt each replica has cached; None: nobody has any."""
    if not runs:
        return None
    size = cells[columns.BLOCK]
    # one more, which is where index NOWHERE leads
    cached = np.zeros(len(size) + 1)
    for blocks, holders in runs:
        rows = board.rows.take(holders.array, mode="clip")
        # the last token is computed in any case: it is what the first one of the answer needs
        cached[rows] = np.minimum(size.take(rows, mode="wrap") * blocks, prompt_tokens - 1)
    return cached[:-1]


def _rule_out(standings: Sequence[Standing], request: Request, cost: Column) -> None:
    if request.choosy:
        for row, standing in enumerate(standings):
            if not request.suits(standing.replica):
                cost[row] = math.inf
    if request.preferred is not None:
        alike = np.array([standing.replica.fingerprint == request.preferred for standing in standings])
        if (alike & (cost < math.inf)).any():
            cost[~alike] = math.inf


def _rule_out_late(
    objective_s: float, cells: Cells, asked: Asked, cached: Column | None, cost: Column
) -> None:
    """Where its turn would come too late for the objective."""
    step = _step(cells, asked)
    wait = cells[columns.AHEAD] * asked.answer * step + cells[columns.QUEUE_S]
    least = LEAST_WAIT * objective_s
    if wait[wait.argmax()] <= least:
        return
    uncached = asked.prompt if cached is None else asked.prompt - cached
    own = cells[columns.PREFILL_TOKEN_S] * uncached + step
    cost[wait > np.maximum(objective_s - own, least)] = math.inf


def _rule_out_slow(objective_s: float, cells: Cells, asked: Asked, cost: Column) -> None:
    """Where steps are too slow now, if somewhere they would not be with less in them."""
    step = _step(cells, asked)
    slow = step > objective_s
    if not slow.any():
        return
    alone = step - cells[columns.STEP_S] + cells[columns.IDLE_STEP_S]
    if ((alone <= objective_s) & (cost < math.inf)).any():
        cost[slow] = math.inf


def _step(cells: Cells, asked: Asked) -> Column:
    """A step with this request in it, on each replica."""
    context_s = cells[columns.PER_PROMPT_TOKEN] - cells[columns.PREFILL_TOKEN_S]
    step: Column = cells[columns.STEP_S] + context_s * asked.prompt
    return step


def _best(
    standings: Sequence[Standing], cost: Column, cached: Column | None, asked: Asked, chosen: int
) -> Forecasts:
    """Those of the lowest costs, the chosen one among them."""
    kept = min(FORECASTS_KEPT, len(cost))
    rows: list[int] = cost.argpartition(kept - 1)[:kept].tolist()
    if chosen not in rows:  # of so many equals
        rows[0] = chosen
    return Forecasts(
        tuple([standings[row] for row in rows]),
        cost.take(rows).tolist(),
        (0.0,) * kept if cached is None else cached.take(rows).tolist(),
        asked,
        rows.index(chosen),
    )
