"""A link that records, an engine that does what a test says, and a vocabulary of words."""

from collections.abc import Sequence
from typing import Any, ClassVar

from tokenfleet.runtime.models import Vocabulary
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.engines.base import EngineFacts, EngineLoad, Finished, Generation, ModelFiles, Sink
from tokenfleet.worker.engines.step_log import StepLog
from tokenfleet.worker.resident import Resident, State
from tokenfleet.worker.text_assembler import Pieces

WORDS = [b"", *(f" w{i}".encode() for i in range(1, 90)), b"\xf0\x9f", b"\x98", b"\x80", b"STO", b"P!"]
SPLIT = (90, 91, 92)  # one emoji in three tokens
STO, P = 93, 94
VOCABULARY = Vocabulary(WORDS, frozenset({0}))


class FakeLink:
    """The sending half; a test may make it unwritable."""

    peer = "fake"

    def __init__(self) -> None:
        self.writable = True
        self.sent: list[worker_pb2.ServeResponse] = []
        self.ended = ""

    def send(self, message: worker_pb2.ServeResponse) -> None:
        copy = worker_pb2.ServeResponse()
        copy.CopyFrom(message)
        self.sent.append(copy)

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    @property
    def steps(self) -> list[worker_pb2.StepOutputs]:
        return [message.step for message in self.sent if message.HasField("step")]

    @property
    def terminals(self) -> list[worker_pb2.Terminal]:
        return [terminal for step in self.steps for terminal in step.terminals]

    def text(self, slot: int) -> str:
        return "".join(
            text for step in self.steps for at, text in zip(step.slots, step.texts, strict=True) if at == slot
        )


class FakeEngine:
    needs_weights: ClassVar[bool] = False
    needs_folder: ClassVar[bool] = False
    features: ClassVar[frozenset[str]] = frozenset({"min_tokens"})

    def __init__(self, threads: int = 1) -> None:
        self.steps = StepLog()
        self.submitted: list[Generation] = []
        self.aborted: list[int] = []

    async def load(self, model: ModelFiles, sink: Sink) -> EngineFacts:
        raise AssertionError("unit tests make residents themselves")

    def submit(self, generation: Generation) -> None:
        self.submitted.append(generation)

    def abort(self, key: int) -> Finished | None:
        self.aborted.append(key)
        return Finished(key, common_pb2.FINISH_REASON_CANCELLED, cached_tokens=7)

    def restart(self, cause: str) -> None:
        raise AssertionError(cause)

    def load_now(self) -> EngineLoad:
        return EngineLoad(running=len(self.submitted) - len(self.aborted))

    async def unload(self) -> int:
        return 0


def resident(engine: FakeEngine, name: str = "m", epoch: int = 5, context_length: int = 100) -> Resident:
    return Resident(
        name,
        epoch,
        "fake",
        0,
        state=State.STATE_READY,
        engine=engine,
        facts=EngineFacts(common_pb2.Fingerprint(engine="fake"), 8, context_length, 64),
        pieces=Pieces(WORDS),
        block_size=16,
        warm_id=1,
    )


def submit(slot: int, ids: Sequence[int] = (1, 2, 3), **fields: Any) -> worker_pb2.Submit:
    values = {"attempt": 1, "model": "m", "prompt_tokens": len(ids), "max_tokens": 10, **fields}
    return worker_pb2.Submit(slot=slot, token_ids=ids, **values)
