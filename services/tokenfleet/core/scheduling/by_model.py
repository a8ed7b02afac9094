"""A policy for each model, and one for all others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tokenfleet.core.scheduling.choice import Choice
from tokenfleet.core.scheduling.model import Replica
from tokenfleet.core.scheduling.policies import Draw, Policy
from tokenfleet.core.scheduling.request import Request


class ByModel(Policy):
    """Asks the policy of the model that it is about."""

    name = "by_model"

    def __init__(self, default: Policy, policies: Mapping[str, Policy]) -> None:
        self._default = default
        self._policies = policies

    def name_for(self, model: str) -> str:
        return self._of(model).name

    def choose(self, request: Request, placeable: Collection[Replica], draw: Draw) -> Choice | None:
        return self._of(request.model).choose(request, placeable, draw)

    def expected_tokens(self, request: Request) -> int:
        return self._of(request.model).expected_tokens(request)

    def placed(self, request: Request, choice: Choice) -> None:
        self._of(choice.replica.model).placed(request, choice)

    def answered(self, request: Request, tokens: int) -> None:
        self._of(request.model).answered(request, tokens)

    def appeared(self, replica: Replica) -> None:
        self._of(replica.model).appeared(replica)

    def vanished(self, replica: Replica) -> None:
        self._of(replica.model).vanished(replica)

    def emptied(self, replica: Replica) -> None:
        self._of(replica.model).emptied(replica)

    def cache_changed(self, replica: Replica, stored: Sequence[int], removed: Sequence[int]) -> None:
        self._of(replica.model).cache_changed(replica, stored, removed)

    def _of(self, model: str) -> Policy:
        return self._policies.get(model, self._default)
