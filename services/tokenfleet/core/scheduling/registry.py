"""The policies by name; the one that predicts is imported when it is wanted, because of its arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

from tokenfleet.core.scheduling.by_model import ByModel
from tokenfleet.core.scheduling.policies import LeastLoaded, Policy, PowerOfTwo, Random, RoundRobin
from tokenfleet.core.scheduling.prediction import PREDICTED, PredictionSettings
from tokenfleet.core.scheduling.prefix_approx import PrefixApprox

_COMPARING = {policy.name: policy for policy in (LeastLoaded, PowerOfTwo, Random, RoundRobin)}
POLICIES = (PREDICTED, PrefixApprox.name, *_COMPARING)


def make_policy(
    name: str, prediction: PredictionSettings | None = None, by_model: Mapping[str, str] | None = None
) -> Policy:
    """The policy of that name, but others for some models; raises KeyError."""
    settings = prediction or PredictionSettings()
    policy = _make(name, settings)
    if not by_model:
        return policy
    return ByModel(policy, {model: _make(other, settings) for model, other in by_model.items()})


def _make(name: str, settings: PredictionSettings) -> Policy:
    if name == PREDICTED:
        from tokenfleet.core.scheduling.predicted import Predicted

        return Predicted(settings)
    if name == PrefixApprox.name:
        return PrefixApprox(settings.index_bytes)
    return _COMPARING[name]()
