"""The lowest predicted cost, in seconds: what the client would wait, and what it costs those already there.

    ttft = (prompt tokens queued there + those of this prompt not cached there) · price of a prompt token
           + a step with this sequence in it, and the wait for a free place where there is none
    cost = ttft + expected answer · that step
           + the zone penalty, if the replica is in another zone than the client
           + the price of computing again what the KV cache could not hold

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
from tokenfleet.core.scheduling.choice import Choice, Forecast, Forecasts
from tokenfleet.core.scheduling.model import Replica
from tokenfleet.core.scheduling.policies import Draw, Policy
from tokenfleet.core.scheduling.prediction import PREDICTED, PredictionSettings
from tokenfleet.core.scheduling.prefix_index import PrefixIndex, Run
from tokenfleet.core.scheduling.request import Request

# Costs this close are equal: the prediction is not that good.
EQUAL = 1.0 + 1e-6
FORECASTS_KEPT = 16


class Predicted(Policy):
    """Keeps a board for each model, and one index of prefixes for all."""

    name = PREDICTED

    def __init__(self, settings: PredictionSettings) -> None:
        self._settings = settings
        self.index = PrefixIndex(settings.index_bytes)
        self.lengths = AnswerLengths()
        self._zones = Zones()
        self._boards: dict[str, Board] = {}
        self._numbers: dict[Replica, int] = {}
        self._numbered: dict[int, Replica] = {}
        self._free_numbers: list[int] = []

    # -- what the fleet tells ----------------------------------------------------------------------

    def appeared(self, replica: Replica) -> None:
        board = self._boards.get(replica.model)
        if board is None:
            board = self._boards[replica.model] = Board(self._zones)
        board.put(replica)

    def vanished(self, replica: Replica) -> None:
        board = self._boards[replica.model]
        board.drop(replica)
        if not len(board):
            del self._boards[replica.model]

    def emptied(self, replica: Replica) -> None:
        number = self._numbers.pop(replica, None)
        if number is not None:
            self.index.forget(number)
            del self._numbered[number]
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
            self._numbered[number] = replica
        return number

    # -- choosing ----------------------------------------------------------------------------------

    def choose(self, request: Request, placeable: Collection[Replica], draw: Draw) -> Choice | None:
        board = self._boards.get(request.model)
        if board is None:
            return None
        runs = self.index.match(request.block_hashes)
        answer = self.lengths.expect(request.model, request.tenant, request.max_tokens)
        cached = self._cached_tokens(board, runs, request.prompt_tokens)
        ttft, step, cost = self._predict(board, request, cached, answer)
        self._rule_out(board, request, cost)
        least = float(cost.min())
        if least == math.inf:
            return None
        equals = np.flatnonzero(cost <= least * EQUAL)
        row = int(equals[int(draw() * len(equals))] if len(equals) > 1 else equals[0])
        kept = _best(cost, row)
        cells = np.array((ttft, step, cost, cached)).take(kept, axis=1)
        replica = board.replicas[row]
        return Choice(
            replica,
            "least predicted cost" if len(equals) == 1 else "least predicted cost, drawn among equals",
            Forecast(replica, float(ttft[row]), float(step[row]), least, int(cached[row])),
            Forecasts([board.replicas[one] for one in kept], cells),
            runs,
        )

    def expected_tokens(self, request: Request) -> int:
        answer = self.lengths.expect(request.model, request.tenant, request.max_tokens)
        return request.prompt_tokens + max(1, round(answer))

    def placed(self, request: Request, choice: Choice) -> None:
        """An engine that does not tell its cache will hold what it is sent."""
        if not choice.replica.tells_cache and request.block_hashes:
            self.index.extend(self.number(choice.replica), request.block_hashes, choice.runs)

    def answered(self, request: Request, tokens: int) -> None:
        self.lengths.learn(request.model, request.tenant, tokens)

    def _cached_tokens(self, board: Board, runs: list[Run], prompt_tokens: int) -> Column:
        cached = np.zeros(len(board))
        for blocks, holders in runs:
            for number in holders.members:
                replica = self._numbered.get(number)
                row = None if replica is None else board.row(replica)
                if row is not None and replica is not None:
                    # the last token is computed in any case: it is what the first one of the answer needs
                    cached[row] = min(blocks * replica.block_size, prompt_tokens - 1)
        return cached

    def _predict(
        self, board: Board, request: Request, cached: Column, answer: float
    ) -> tuple[Column, Column, Column]:
        """Seconds to the first token, of a step, and in all, on each replica."""
        column = board.column
        prefill = column(columns.PREFILL_TOKEN_S)
        uncached = request.prompt_tokens - cached
        step = column(columns.STEP_S) + column(columns.CONTEXT_TOKEN_S) * request.prompt_tokens
        ttft = column(columns.QUEUED_S) + prefill * uncached + step * (1 + column(columns.AHEAD) * answer)
        lost = np.maximum(uncached + answer - column(columns.FREE), 0.0)
        cost = ttft + step * answer + prefill * lost + column(columns.FULL)
        zone = self._zones.number(request.zone)
        if zone != UNKNOWN_ZONE:
            cost += self._settings.zone_penalty_s * (column(columns.ZONE) != zone)
        return ttft, step, cost

    def _rule_out(self, board: Board, request: Request, cost: Column) -> None:
        if request.choosy:
            for row, replica in enumerate(board.replicas):
                if not request.suits(replica):
                    cost[row] = math.inf
        if request.preferred is not None:
            alike = np.array([replica.fingerprint == request.preferred for replica in board.replicas])
            if (alike & (cost < math.inf)).any():
                cost[~alike] = math.inf


def _best(cost: Column, chosen: int) -> list[int]:
    """The rows of the lowest costs, the chosen one first."""
    if len(cost) <= FORECASTS_KEPT:
        rows = range(len(cost))
    else:
        rows = np.argpartition(cost, FORECASTS_KEPT)[:FORECASTS_KEPT].tolist()
    return [chosen, *(row for row in rows if row != chosen)]
