"""The lowest predicted cost, in seconds: what the client would wait, and what it costs those already there.

    ttft = (prompt tokens queued there + those of this prompt not cached there) · price of a prompt token
           + a step with this sequence in it, and the wait for a free place where there is none
    cost = ttft + expected answer · that step
           + the zone penalty, if the replica is in another zone than the client
           + the price of computing again what the KV cache could not hold
           + a penalty for a device that throttles or lacks memory
           + what computing this prompt there makes those wait who come after it

Where a request would wait longer for its turn than its objective allows, it does not go: it waits in the
router, in its order, for whichever replica gets to it first. What would be too slow between tokens now, and
is not when less runs there, is waited for likewise.

All of it is measured: prices from the replica's own steps, cached blocks from its cache events or, where the
engine tells none, from what was sent there before, the length of answers from earlier ones. There are no
weights to be tuned; the zone penalty is what an answer from another zone is considered to cost.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from tokenfleet.core.scheduling import board as columns
from tokenfleet.core.scheduling.answer_lengths import AnswerLengths
from tokenfleet.core.scheduling.board import UNKNOWN_ZONE, Board, Column, Zones
from tokenfleet.core.scheduling.choice import Choice, Forecasts
from tokenfleet.core.scheduling.crowding import Crowding
from tokenfleet.core.scheduling.model import Replica
from tokenfleet.core.scheduling.policies import Draw, Policy
from tokenfleet.core.scheduling.prediction import PREDICTED, PredictionSettings
from tokenfleet.core.scheduling.prefix_index import PrefixIndex, Run
from tokenfleet.core.scheduling.request import Request

# Costs this close are equal: the prediction is not that good.
EQUAL = 1.0 + 1e-6
FORECASTS_KEPT = 16
# Of the TTFT objective, what a turn may be waited for in any case: a prompt that takes longer by itself than
# its objective would otherwise wait for a replica with nothing else to do.
LEAST_WAIT = 0.25


class Predicted(Policy):
    """Keeps a board for each model, and one index of prefixes for all."""

    name = PREDICTED

    def __init__(self, settings: PredictionSettings) -> None:
        self._settings = settings
        self.index = PrefixIndex(settings.index_bytes)
        self.lengths = AnswerLengths()
        self._zones = Zones()
        self._boards: dict[str, Board] = {}
        self._crowding: dict[str, Crowding] = {}
        self._numbers: dict[Replica, int] = {}
        self._free_numbers: list[int] = []

    # -- what the fleet tells ----------------------------------------------------------------------

    def appeared(self, replica: Replica) -> None:
        board = self._boards.get(replica.model)
        if board is None:
            board = self._boards[replica.model] = Board(self._zones)
            self._crowding[replica.model] = Crowding()
        board.put(replica, self.number(replica))

    def vanished(self, replica: Replica) -> None:
        board = self._boards[replica.model]
        board.drop(replica)
        if not len(board):
            del self._boards[replica.model], self._crowding[replica.model]

    def emptied(self, replica: Replica) -> None:
        number = self._numbers.get(replica)
        if number is None:
            return
        self.index.forget(number)
        if replica.observer is None:  # on the board it is known by its number
            del self._numbers[replica]
            self._free_numbers.append(number)

    def cache_changed(self, replica: Replica, stored: Sequence[int], removed: Sequence[int]) -> None:
        number = self.number(replica)
        if removed:
            self.index.removed(number, removed)
        if stored:
            self.index.stored(number, stored)

    def number(self, replica: Replica) -> int:
        """The replica's name in the index."""
        number = self._numbers.get(replica)
        if number is None:
            number = self._free_numbers.pop() if self._free_numbers else len(self._numbers)
            self._numbers[replica] = number
        return number

    # -- choosing ----------------------------------------------------------------------------------

    def choose(self, request: Request, placeable: Collection[Replica], draw: Draw) -> Choice | None:
        board = self._boards.get(request.model)
        if board is None:
            return None
        runs = self.index.match(request.block_hashes)
        cached = _cached_tokens(board, runs, request.prompt_tokens)
        answer = self.lengths.expect(request.model, request.tenant, request.max_tokens)
        delay = self._crowding[request.model].delay
        cost = self._cost(board, request, cached, answer, delay)
        _rule_out(board, request, cost)
        if request.ttft_objective_s < math.inf:
            _rule_out_late(board, request, cached, answer, cost)
        if request.itl_objective_s < math.inf:
            _rule_out_slow(board, request, cost)
        least = float(cost[cost.argmin()])
        if least == math.inf:
            return None
        equals = (cost <= least * EQUAL).nonzero()[0]
        row = int(equals[int(draw() * len(equals))] if len(equals) > 1 else equals[0])
        rows, costs = _best(cost, row, least)
        forecasts = Forecasts(
            [board.replicas[one] for one in rows],
            board.cells(rows),
            costs,
            None if cached is None else cached.take(rows),
            request.prompt_tokens,
            answer,
            zone=self._zones.number(request.zone),
            zone_penalty_s=self._settings.zone_penalty_s,
            delay=delay,
        )
        return Choice(
            board.replicas[row],
            "least predicted cost" if len(equals) == 1 else "least predicted cost, drawn among equals",
            forecasts.chosen(),
            forecasts,
            runs,
        )

    def expected_tokens(self, request: Request) -> int:
        answer = self.lengths.expect(request.model, request.tenant, request.max_tokens)
        return request.prompt_tokens + max(1, round(answer))

    def placed(self, request: Request, choice: Choice) -> None:
        """An engine that does not tell its cache will hold what it is sent."""
        self._crowding[request.model].found(self._boards[request.model])
        if not choice.replica.tells_cache and request.block_hashes:
            self.index.extend(self.number(choice.replica), request.block_hashes, choice.runs)

    def answered(self, request: Request, tokens: int) -> None:
        self.lengths.learn(request.model, request.tenant, tokens)

    def _cost(
        self, board: Board, request: Request, cached: Column | None, answer: float, delay: float
    ) -> Column:
        """In seconds, on each replica."""
        prompt = request.prompt_tokens
        cost: Column = np.array((1.0, prompt, answer, prompt * answer)) @ board.linear()
        prefill = board.column(columns.PREFILL_TOKEN_S)
        if delay:
            cost += (delay * prompt) * prefill
        if cached is not None:
            cost -= (1.0 + delay) * prefill * cached
        lost = prompt + answer - board.column(columns.FREE)
        if lost[lost.argmax()] > 0.0:
            if cached is not None:
                lost -= cached
            cost += prefill * np.maximum(lost, 0.0)
        zone = self._zones.number(request.zone)
        if zone != UNKNOWN_ZONE:
            cost += board.abroad(zone) * self._settings.zone_penalty_s
        return cost


def _cached_tokens(board: Board, runs: Sequence[Run], prompt_tokens: int) -> Column | None:
    """How much of the prompt each replica has cached; None: nobody has any."""
    if not runs:
        return None
    size = board.column(columns.BLOCK)
    # one more, which is where index NOWHERE leads
    cached = np.zeros(len(size) + 1)
    for blocks, holders in runs:
        rows = board.rows.take(holders.array, mode="clip")
        # the last token is computed in any case: it is what the first one of the answer needs
        cached[rows] = np.minimum(size.take(rows, mode="wrap") * blocks, prompt_tokens - 1)
    return cached[:-1]


def _rule_out(board: Board, request: Request, cost: Column) -> None:
    if request.choosy:
        for row, replica in enumerate(board.replicas):
            if not request.suits(replica):
                cost[row] = math.inf
    if request.preferred is not None:
        alike = np.array([replica.fingerprint == request.preferred for replica in board.replicas])
        if (alike & (cost < math.inf)).any():
            cost[~alike] = math.inf


def _rule_out_late(
    board: Board, request: Request, cached: Column | None, answer: float, cost: Column
) -> None:
    """Where its turn would come too late for the objective."""
    step = _step(board, request)
    wait = board.column(columns.AHEAD) * answer * step + board.column(columns.QUEUE_S)
    least = LEAST_WAIT * request.ttft_objective_s
    if wait[wait.argmax()] <= least:
        return
    prefill = board.column(columns.PREFILL_TOKEN_S)
    own = prefill * (request.prompt_tokens if cached is None else request.prompt_tokens - cached) + step
    cost[wait > np.maximum(request.ttft_objective_s - own, least)] = math.inf


def _rule_out_slow(board: Board, request: Request, cost: Column) -> None:
    """Where steps are too slow now, if somewhere they would not be with less in them."""
    step = _step(board, request)
    slow = step > request.itl_objective_s
    if not slow.any():
        return
    alone = step - board.column(columns.STEP_S) + board.column(columns.IDLE_STEP_S)
    if ((alone <= request.itl_objective_s) & (cost < math.inf)).any():
        cost[slow] = math.inf


def _step(board: Board, request: Request) -> Column:
    """A step with this request in it, on each replica."""
    context_s = board.column(columns.PER_PROMPT_TOKEN) - board.column(columns.PREFILL_TOKEN_S)
    return board.column(columns.STEP_S) + context_s * request.prompt_tokens


def _best(cost: Column, chosen: int, least: float) -> tuple[list[int], list[float]]:
    """The rows of the lowest costs and these, the chosen one first; uses up `cost`."""
    rows, costs = [chosen], [least]
    cost[chosen] = math.inf
    for _ in range(min(FORECASTS_KEPT, len(cost)) - 1):
        row = int(cost.argmin())
        if cost[row] == math.inf:
            break
        rows.append(row)
        costs.append(float(cost[row]))
        cost[row] = math.inf
    return rows, costs
