"""What the worker asks of an engine, and what an engine tells the worker.

The unit of the hot path is the engine *step*, not the sequence: an engine calls `Sink.step` once with the
tokens of all sequences that advanced. One async iterator per sequence would cost a task switch per token.

Engines deal in token ids only. Text, stop strings, stop tokens, deadlines and slots are the worker's; so an
engine does not deliver the end-of-sequence id: an answer that ends by itself ends with its last text token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import Vocabulary
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.engines.step_log import StepLog

# A sequence's key and its new token ids.
Delta = tuple[int, Sequence[int]]
# A sequence's key and the log probabilities of one of its new tokens; slot and attempt are not filled in.
Logprobs = tuple[int, worker_pb2.TokenLogprobs]


@dataclass(slots=True, eq=False)
class Generation:
    """One sequence to run. `key` is unique in the worker's life."""

    key: int
    token_ids: Sequence[int]  # the prompt, and what was generated so far
    prompt_tokens: int  # length of the prompt alone
    max_tokens: int  # still to generate; at least 1
    sampling: common_pb2.SamplingParams
    block_hashes: Sequence[int] = ()


class Finished(NamedTuple):
    """A sequence's last word. With `failure` it broke off and may be continued elsewhere."""

    key: int
    reason: common_pb2.FinishReason.ValueType
    cached_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    failure: FleetError | None = None


class Sink(Protocol):
    """The worker's side. All calls come from the event loop's thread; none but those about the cache from
    within `submit`."""

    def step(
        self, deltas: Sequence[Delta], finished: Sequence[Finished], logprobs: Sequence[Logprobs] = ()
    ) -> None:
        """New tokens, then who finished. Nothing follows a sequence's `Finished`."""

    def engine_down(self, cause: str, failure: FleetError) -> None:
        """The engine died. Its sequences were finished as failed before; it is being restarted."""

    def engine_up(self, facts: EngineFacts | None = None) -> None:
        """A restarted engine takes sequences again; `facts` where they are not what they were."""

    def cache_stored(self, hashes: Sequence[int], parent: int) -> None:
        """The blocks of a chain are cached; `parent` is the hash before the first, 0 at the root."""

    def cache_removed(self, hashes: Sequence[int]) -> None:
        """The blocks are cached no longer."""


class EngineLoad(NamedTuple):
    """What occupies the engine now, in terms that are the same for all engines."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    queued_prefill_tokens: int = 0
    context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """One model as an engine gets it: its catalog entry, its files on this node, where its output goes."""

    name: str
    context_length: int
    block_size: int
    arguments: Mapping[str, object]  # the engine's own names
    kv_bytes: int
    weights_digest: str
    weights: Path | None  # None for an engine that needs none
    vocabulary: Vocabulary
    progress: Callable[[float], None] = lambda _: None  # how much of the start is done, 0 to 1; any thread

    def check_vocabulary(self, engine: str, tokens: int) -> None:
        """Raises FleetError when the engine's model cannot have what the tokenizer may give it."""
        if tokens < self.vocabulary.size:
            raise load_failed(
                f"engine {engine}: the model has {tokens} tokens, but the tokenizer of {self.name} "
                f"{self.vocabulary.size}: they do not belong together"
            )


@dataclass(frozen=True, slots=True)
class SleepCosts:
    """What it means for an engine to sleep instead of being unloaded."""

    asleep_bytes: int  # that it keeps
    wake_s: float


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What is known of an engine once it is up."""

    fingerprint: common_pb2.Fingerprint
    max_sequences: int
    context_length: int
    kv_blocks_total: int
    memory_bytes: int = 0
    vocabulary_size: int = 0  # ids it may generate; 0: those of the tokenizer
    sleep: SleepCosts | None = None  # where it is a `SleepingEngine`


class Engine(Protocol):
    """One model on one engine. An instance is loaded once and unloaded once."""

    needs_weights: ClassVar[bool]
    needs_folder: ClassVar[bool]  # as a folder in Hugging Face's layout; a gguf is converted
    steps: StepLog

    @property
    def features(self) -> frozenset[str]:
        """Of "logprobs", "json_schema", "seed", "min_tokens", "cache_events": what a request may ask for."""

    async def load(self, model: ModelFiles, sink: Sink) -> EngineFacts:
        """Brings the engine up. Raises FleetError with the engine's own words."""

    def submit(self, generation: Generation) -> None:
        """Queues the sequence. Raises FleetError when it can never run, or the engine is down."""

    def abort(self, key: int) -> Finished | None:
        """Ends the sequence and frees what it holds: nothing of it follows.

        Answers what is known of its queueing and prefill; None when it is not here (any more).
        """

    def restart(self, cause: str) -> None:
        """Kills an engine that does not do its work; the sink hears of its death and its return."""

    def load_now(self) -> EngineLoad:
        """Cheap: called for each load sample."""

    async def unload(self) -> int:
        """Ends everything; answers the bytes of memory that were freed, as measured."""


class SleepingEngine(Engine, Protocol):
    """What an engine has besides whose facts say what sleep costs. It sleeps only while nothing runs."""

    async def sleep(self) -> int:
        """Gives up most of its memory, and its caches; all but `wake` and `unload` is out of the question.

        Answers the bytes that it gave up. Raises FleetError when it cannot.
        """

    async def wake(self) -> None:
        """Takes sequences again. Raises FleetError when it cannot."""


# Makes an engine; the argument is the number of threads that it may use.
EngineFactory = Callable[[int], Engine]


def load_failed(message: str) -> FleetError:
    return FleetError(common_pb2.REASON_LOAD_FAILED, message)
