"""When a model cannot be had, another may answer in its place: the one that its catalog entry names.

Cannot be had means that nobody holds it and nobody will in time: its load failed and waits out its back-off,
no worker has the memory for it or hosts an engine of it, or it would be ready only behind the deadline. Then
the request is tokenized anew for the stand-in, whose vocabulary may be another, and begins afresh; that is
possible only as long as no token was generated. It is never done silently: the answer's `model` is who really
answered, beside it stands why, and a client can forbid it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenfleet.gateway.sequence import Sequence
from tokenfleet.runtime.errors import FleetError, reason_name
from tokenfleet.v1 import common_pb2 as pb

# For what loads slower than it should, where nothing is known of how long it takes.
LOADING_RETRY_S = 5.0

# What a router's refusal says about the model and not about the moment or the request.
UNAVAILABLE = frozenset(
    {
        pb.REASON_NO_WORKER,
        pb.REASON_OUT_OF_MEMORY,
        pb.REASON_LOAD_FAILED,
        pb.REASON_ENGINE_FAILED,
    }
)
# Why a stand-in may be unable to answer what the model could have.
_UNSUITED = frozenset({pb.REASON_CONTEXT_LENGTH_EXCEEDED, pb.REASON_UNSUPPORTED, pb.REASON_MODEL_NOT_FOUND})


class ModelUnavailable(FleetError):
    """The model cannot be had, and nothing was generated yet: another one may still answer."""

    @classmethod
    def of(cls, error: FleetError) -> ModelUnavailable:
        return cls(
            error.reason,
            error.message,
            retry_after_s=error.retry_after_s,
            field=error.field,
            missing_bytes=error.missing_bytes,
        )


@dataclass(slots=True, frozen=True)
class Fallback:
    """Who answers instead, and why not the one that was asked."""

    requested: str
    model: str
    reason: str  # stable

    def words(self) -> str:
        return f"{self.requested} cannot be had ({self.reason}): {self.model} answers"

    def as_json(self) -> dict[str, Any]:
        return {"requested": self.requested, "reason": self.reason}


async def with_fallback(
    model: str,
    catalog: Mapping[str, pb.ModelSpec],
    attempt: Callable[[str], Awaitable[None]],
    instead: Callable[[Fallback], None],
) -> None:
    """Attempts it with the model, then with those that stand in for it, one behind the other.

    `instead` is told before each stand-in begins. Raises FleetError: what ended an attempt, and where no
    stand-in could begin, why the first model could not be had.
    """
    tried, cause, present = {model}, None, model
    while True:
        try:
            await attempt(present)
            return
        except ModelUnavailable as error:
            cause = cause or error
        except FleetError as error:
            if cause is None or error.reason not in _UNSUITED:
                raise
        spec = catalog.get(present)
        present = spec.fallback if spec is not None else ""
        if not present or present in tried:
            raise cause
        tried.add(present)
        instead(Fallback(model, present, reason_name(cause.reason)))


def too_slow(load: pb.LoadProgress, left_s: float) -> FleetError | None:
    """Why a request with that much time left need not wait for the load; None if it can, or might."""
    eta_s = load.eta_ms / 1000
    if eta_s <= left_s:
        return None
    return ModelUnavailable(
        pb.REASON_DEADLINE_EXCEEDED,
        f"{load.model} is being loaded and takes about {eta_s:.0f} s more, of which {left_s:.0f} s are left",
        retry_after_s=eta_s,
    )


def late(sequences: Iterable[Sequence], seconds: float) -> FleetError:
    """What a client is told whose request was not done in its time."""
    load = next((each.loading for each in sequences if each.loading is not None), None)
    if load is None:
        message = f"not done within {seconds:g} s: raise the timeout or ask for less"
        return FleetError(pb.REASON_DEADLINE_EXCEEDED, message)
    stage = pb.LoadProgress.Stage.Name(load.stage).removeprefix("STAGE_").lower().replace("_", " ")
    return FleetError(
        pb.REASON_DEADLINE_EXCEEDED,
        f"{load.model} was still being loaded ({stage}) after {seconds:g} s. The load goes on: ask again "
        "later, or with a longer timeout",
        retry_after_s=load.eta_ms / 1000 or LOADING_RETRY_S,
    )
