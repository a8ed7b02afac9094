"""The policies by name; the one that predicts is imported when it is wanted, because of its arithmetic."""

from __future__ import annotations

from tokenfleet.core.scheduling.policies import LeastLoaded, Policy, PowerOfTwo, Random, RoundRobin
from tokenfleet.core.scheduling.prediction import PREDICTED, PredictionSettings

_COMPARING = {policy.name: policy for policy in (LeastLoaded, PowerOfTwo, Random, RoundRobin)}
POLICIES = (PREDICTED, *_COMPARING)


def make_policy(name: str, prediction: PredictionSettings | None = None) -> Policy:
    """The policy of that name; raises KeyError."""
    if name == PREDICTED:
        from tokenfleet.core.scheduling.predicted import Predicted

        return Predicted(prediction or PredictionSettings())
    return _COMPARING[name]()
