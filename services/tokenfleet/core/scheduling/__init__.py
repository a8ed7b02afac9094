"""The scheduler: which worker serves a request, or whether it waits, or is shed.

`Fleet` is what is known about the workers, `Reservations` what was sent and not yet seen there, a `Policy`
chooses among workers with room, and `Scheduler` puts them and the queues together. All of it is told the time
and given its randomness: the router runs it on the wall clock, the simulator on a virtual one.
"""

from tokenfleet.core.scheduling.choice import Choice, Forecast
from tokenfleet.core.scheduling.cold import ColdCost
from tokenfleet.core.scheduling.fleet import (
    Fleet,
    ModelLoad,
    ReplicaFacts,
    ReplicaState,
    WorkerFacts,
)
from tokenfleet.core.scheduling.model import Device, Fingerprint, Outcome, Phase, Replica, Reservation, Worker
from tokenfleet.core.scheduling.policies import Policy
from tokenfleet.core.scheduling.prediction import PredictionSettings
from tokenfleet.core.scheduling.registry import POLICIES, make_policy
from tokenfleet.core.scheduling.request import (
    Decision,
    Loading,
    LoadWish,
    Placed,
    Queued,
    Refused,
    Request,
)
from tokenfleet.core.scheduling.scene import Candidate, Scene
from tokenfleet.core.scheduling.scheduler import Scheduler, SchedulerLimits
from tokenfleet.core.scheduling.speed import Step

__all__ = [
    "POLICIES",
    "Candidate",
    "Choice",
    "ColdCost",
    "Decision",
    "Device",
    "Fingerprint",
    "Fleet",
    "Forecast",
    "LoadWish",
    "Loading",
    "ModelLoad",
    "Outcome",
    "Phase",
    "Placed",
    "Policy",
    "PredictionSettings",
    "Queued",
    "Refused",
    "Replica",
    "ReplicaFacts",
    "ReplicaState",
    "Request",
    "Reservation",
    "Scene",
    "Scheduler",
    "SchedulerLimits",
    "Step",
    "Worker",
    "WorkerFacts",
    "make_policy",
]
