"""A model of a batching engine: when it would emit which token, without computing any.

Used by the worker's `sim` engine, which drives it in real time, and by whoever wants to know how a fleet of
such engines behaves under another clock. Time is passed in as seconds and only differences matter.

- `timing`   how long a step takes, and the fixed profile that benchmarks use
- `sequence` what the model knows of one running request
- `fixed`, `batching`, `static`  the schedules, with one interface (`EngineModel`)
- `faults`  crashes, lack of memory, slowness and wedges, at a given step
- `stall`   when an engine that has work and makes no step is to be called wedged
- `prefix_cache`  which KV blocks are held, kept and evicted
- `hashed_ids`    the next token as a hash of all ids so far, so that any lost or repeated token shows
"""

from tokenfleet.core.engine_model.batching import BatchingModel
from tokenfleet.core.engine_model.faults import Fault, FaultKind, FaultPlan
from tokenfleet.core.engine_model.fixed import FixedModel
from tokenfleet.core.engine_model.hashed_ids import Alphabet, HashedIds
from tokenfleet.core.engine_model.model import Advance, EngineModel, Load, StepRecord
from tokenfleet.core.engine_model.prefix_cache import PrefixCache
from tokenfleet.core.engine_model.sequence import Ended, Ending, ModelSequence, TokenSource
from tokenfleet.core.engine_model.stall import StallDetector
from tokenfleet.core.engine_model.static import StaticModel
from tokenfleet.core.engine_model.timing import FixedTiming, StepTiming

__all__ = [
    "Advance",
    "Alphabet",
    "BatchingModel",
    "Ended",
    "Ending",
    "EngineModel",
    "Fault",
    "FaultKind",
    "FaultPlan",
    "FixedModel",
    "FixedTiming",
    "HashedIds",
    "Load",
    "ModelSequence",
    "PrefixCache",
    "StallDetector",
    "StaticModel",
    "StepRecord",
    "StepTiming",
    "TokenSource",
]
