"""Between the wire and the core: protobuf on one side, plain data on the other, and no decision here."""

from __future__ import annotations

from collections.abc import Sequence

from tokenfleet.core.queueing import Lane
from tokenfleet.core.scheduling import (
    Candidate,
    Device,
    Fingerprint,
    ModelLoad,
    Outcome,
    Phase,
    Refused,
    ReplicaFacts,
    ReplicaState,
    Step,
    WorkerFacts,
)
from tokenfleet.core.scheduling.sampling import STEPS_LEARNED
from tokenfleet.v1 import common_pb2, router_pb2, worker_pb2

# As a worker without any other device names its own.
PROCESSOR = "cpu"

_PHASES = {
    worker_pb2.WORKER_STATE_STARTING: Phase.STARTING,
    worker_pb2.WORKER_STATE_READY: Phase.READY,
    worker_pb2.WORKER_STATE_DRAINING: Phase.DRAINING,
    worker_pb2.WORKER_STATE_FAILED: Phase.FAILED,
}
_STATES = {
    worker_pb2.ResidentModel.STATE_LOADING: ReplicaState.LOADING,
    worker_pb2.ResidentModel.STATE_READY: ReplicaState.READY,
}
_OUTCOMES = {
    router_pb2.Release.OUTCOME_WORKER_LOST: Outcome.LOST,
    router_pb2.Release.OUTCOME_UNREACHABLE: Outcome.LOST,
    router_pb2.Release.OUTCOME_NOT_RESIDENT: Outcome.NOT_RESIDENT,
}
_OUTCOME_NAMES = {
    number: name.removeprefix("OUTCOME_").lower() for name, number in router_pb2.Release.Outcome.items()
}
# By priority, for a first attempt and for a resumed one.
_LANES = {
    common_pb2.PRIORITY_UNSPECIFIED: (Lane.STANDARD, Lane.STANDARD_RESUMED),
    common_pb2.PRIORITY_INTERACTIVE: (Lane.INTERACTIVE, Lane.INTERACTIVE_RESUMED),
    common_pb2.PRIORITY_STANDARD: (Lane.STANDARD, Lane.STANDARD_RESUMED),
    common_pb2.PRIORITY_BATCH: (Lane.BATCH, Lane.BATCH_RESUMED),
}


def worker_facts(info: worker_pb2.WorkerInfo) -> WorkerFacts:
    return WorkerFacts(
        worker_id=info.worker_id,
        name=info.name,
        zone=info.zone,
        phase=_PHASES.get(info.state, Phase.STARTING),
        engines=frozenset(info.engines),
        replicas=tuple(map(_replica_facts, info.models)),
    )


def _replica_facts(model: worker_pb2.ResidentModel) -> ReplicaFacts:
    return ReplicaFacts(
        model=model.model,
        state=_STATES.get(model.state, ReplicaState.AWAY),
        epoch=model.residency_epoch,
        max_sequences=model.max_sequences,
        running=model.running,
        fingerprint=fingerprint(model.fingerprint),
        features=frozenset(model.features),
        block_size=model.block_size,
        kv_blocks_total=model.kv_blocks_total,
    )


def fingerprint(told: common_pb2.Fingerprint) -> Fingerprint:
    return Fingerprint(told.engine, told.engine_version, told.weights_digest, told.dtype)


def model_loads(sample: worker_pb2.LoadSample) -> list[ModelLoad]:
    return [
        ModelLoad(
            load.model,
            load.running,
            load.waiting,
            load.queued_prefill_tokens,
            load.context_tokens,
            load.kv_blocks_used,
            _latest_steps(load),
        )
        for load in sample.models
    ]


def _latest_steps(load: worker_pb2.LoadSample.ModelLoad) -> Sequence[Step]:
    """The last few."""
    if not load.step_us:
        return ()
    return [
        Step(us / 1e6, batch, prefill_tokens, context_tokens)
        for us, batch, prefill_tokens, context_tokens in zip(
            load.step_us[-STEPS_LEARNED:],
            load.step_batch[-STEPS_LEARNED:],
            load.step_prefill_tokens[-STEPS_LEARNED:],
            load.step_context_tokens[-STEPS_LEARNED:],
            strict=False,
        )
        if us
    ]


def device(told: worker_pb2.Accelerator) -> Device:
    """A processor's memory is its machine's, which others fill: that says nothing about this worker."""
    memory = told.memory_used_bytes / told.memory_total_bytes if told.memory_total_bytes else 0.0
    return Device(tuple(told.faults), told.throttled, 0.0 if told.kind == PROCESSOR else memory)


def outcome(told: router_pb2.Release.Outcome.ValueType) -> Outcome:
    return _OUTCOMES.get(told, Outcome.ENDED)


def outcome_name(told: router_pb2.Release.Outcome.ValueType) -> str:
    return _OUTCOME_NAMES.get(told, "unspecified")


def lane(priority: common_pb2.Priority.ValueType, attempt: int) -> Lane:
    first, resumed = _LANES.get(priority, _LANES[common_pb2.PRIORITY_STANDARD])
    return resumed if attempt > 1 else first


def placements(endpoint: str, info: worker_pb2.WorkerInfo) -> dict[str, router_pb2.Placement]:
    """For each model of a worker what every placement there has in common."""
    return {
        model.model: router_pb2.Placement(
            worker_id=info.worker_id,
            endpoint=endpoint,
            model=model.model,
            residency_epoch=model.residency_epoch,
            fingerprint=model.fingerprint,
            zone=info.zone,
        )
        for model in info.models
    }


def failure(refused: Refused) -> common_pb2.Failure:
    return common_pb2.Failure(
        reason=common_pb2.Reason.Value(f"REASON_{refused.reason.upper()}"),
        message=refused.message,
        retry_after_ms=round(refused.retry_after_s * 1000),
        missing_bytes=refused.missing_bytes,
    )


def candidate(seen: Candidate) -> router_pb2.DecisionRecord.Candidate:
    described = router_pb2.DecisionRecord.Candidate(
        worker_id=seen.worker_id,
        zone=seen.zone,
        running=seen.running,
        waiting=seen.waiting,
        veto=seen.veto,
    )
    if seen.cold is not None:
        described.predicted_ttft_s = seen.cold.ttft_s
        described.predicted_step_s = seen.cold.step_s
        described.cost_s = seen.cold.cost_s
        described.parts_s.update(seen.cold.parts_s())
    if seen.forecast is not None:
        described.predicted_ttft_s = seen.forecast.ttft_s
        described.predicted_step_s = seen.forecast.step_s
        described.cost_s = seen.forecast.cost_s
        described.matched_tokens = seen.forecast.cached_tokens
        described.parts_s.update(seen.forecast.parts_s)
    return described
