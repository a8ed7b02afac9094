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

from collections.abc import Collection, Sequence

from tokenfleet.core.scheduling.answer_lengths import AnswerLengths
from tokenfleet.core.scheduling.board import Board, Zones
from tokenfleet.core.scheduling.choice import Choice
from tokenfleet.core.scheduling.cost import Asked
from tokenfleet.core.scheduling.crowding import Crowding
from tokenfleet.core.scheduling.few import choose_among_few
from tokenfleet.core.scheduling.many import choose_among_many
from tokenfleet.core.scheduling.model import Replica
from tokenfleet.core.scheduling.policies import Draw, Policy
from tokenfleet.core.scheduling.prediction import PREDICTED, PredictionSettings
from tokenfleet.core.scheduling.prefix_index import PrefixIndex
from tokenfleet.core.scheduling.request import Request

# Replicas of a model up to which a choice is made one by one: there, both ways take as long.
FEW = 24


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
        asked = Asked(
            request.prompt_tokens,
            self.lengths.expect(request.model, request.tenant, request.max_tokens),
            self._zones.number(request.zone),
            self._settings.zone_penalty_s,
            self._crowding[request.model].delay,
        )
        choose = choose_among_few if len(board) <= FEW else choose_among_many
        return choose(board, request, asked, runs, draw)

    def expected_tokens(self, request: Request) -> int:
        answer = self.lengths.expect(request.model, request.tenant, request.max_tokens)
        return request.prompt_tokens + max(1, round(answer))

    def placed(self, request: Request, choice: Choice) -> None:
        """An engine that does not tell its cache will hold what it is sent."""
        self._crowding[request.model].found(choice.busy)
        if not choice.replica.tells_cache and request.block_hashes:
            self.index.extend(self.number(choice.replica), request.block_hashes, choice.runs)

    def answered(self, request: Request, tokens: int) -> None:
        self.lengths.learn(request.model, request.tenant, tokens)
