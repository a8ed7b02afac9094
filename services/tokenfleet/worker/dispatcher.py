"""Between sessions and engines: which sequence a token belongs to, and how each one ends.

`step` is the worker's hot loop. Everything it does for a token is a dictionary look-up, a piece of text and
an append; whatever happens once per request happens elsewhere.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING

from tokenfleet.runtime.changes import Changes
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.engines.base import Delta, Finished, Generation, Logprobs
from tokenfleet.worker.outbox import Outbox
from tokenfleet.worker.resident import Resident
from tokenfleet.worker.sequence import Sequence, check_features, check_lengths
from tokenfleet.worker.text_assembler import TextAssembler

if TYPE_CHECKING:
    from tokenfleet.worker.session import Session


class Dispatcher:
    """Owns all live sequences of the worker. Runs on the event loop's thread."""

    def __init__(self, residents: Mapping[str, Resident], queue_limit: int) -> None:
        self._residents = residents
        self._queue_limit = queue_limit
        self._loop = asyncio.get_running_loop()
        self._keys = itertools.count(1)
        self._live: dict[int, Sequence] = {}
        self._canaries: dict[int, asyncio.Future[Finished]] = {}
        self.refuse_with: FleetError | None = None  # set while draining
        self.changed = Changes()  # a sequence came, was prefilled, or went
        self.tokens = 0  # generated in this worker's life
        self.outcomes: dict[str, int] = {}  # sequences by how they ended

    @property
    def running(self) -> int:
        return len(self._live)

    def submit(
        self, session: Session, submit: worker_pb2.Submit, token_ids: SequenceOf[int]
    ) -> Sequence | None:
        """Starts a sequence; None when it ended at once, its terminal being in the session's outbox."""
        try:
            return self._start(session, submit, token_ids)
        except FleetError as error:
            self._count(error.reason_name)
            session.outbox.end(
                worker_pb2.Terminal(
                    slot=submit.slot,
                    attempt=submit.attempt,
                    finish_reason=common_pb2.FINISH_REASON_FAILED,
                    failure=error.to_failure(),
                )
            )
            return None

    def cancel(self, sequence: Sequence) -> None:
        """The gateway wants no more of it."""
        self._break_off(sequence, common_pb2.FINISH_REASON_CANCELLED, "cancelled")

    def drop(self, sequence: Sequence) -> None:
        """Its gateway is gone: nobody is left to tell."""
        sequence.engine.abort(sequence.key)
        self._forget(sequence, "dropped")

    def fail(self, sequences: Iterable[Sequence], error: FleetError) -> None:
        """Breaks sequences off; their gateways may continue them elsewhere."""
        for sequence in tuple(sequences):
            self._break_off(sequence, common_pb2.FINISH_REASON_FAILED, error.reason_name, error)
            sequence.outbox.flush()

    def live(self, resident: Resident | None = None) -> list[Sequence]:
        """All live sequences, or those of one model."""
        return [one for one in self._live.values() if resident is None or one.resident is resident]

    async def canary(self, resident: Resident, timeout_s: float) -> None:
        """One token through the engine: it can do its work. Raises FleetError when it cannot."""
        assert resident.engine is not None
        key = next(self._keys)
        answer = self._canaries[key] = self._loop.create_future()
        sampling = common_pb2.SamplingParams(temperature=0, ignore_eos=True)
        try:
            resident.engine.submit(Generation(key, [resident.warm_id], 1, 1, sampling))
            async with asyncio.timeout(timeout_s):
                finished = await answer
        except TimeoutError:
            resident.engine.abort(key)
            raise FleetError(
                common_pb2.REASON_LOAD_FAILED, f"the engine gave no first token within {timeout_s:g} s"
            ) from None
        finally:
            self._canaries.pop(key, None)
        if finished.failure is not None:
            raise finished.failure

    def step(
        self, deltas: SequenceOf[Delta], finished: SequenceOf[Finished], logprobs: SequenceOf[Logprobs] = ()
    ) -> None:
        """One engine step: deltas into the outboxes of their gateways, then the ends, then off with them."""
        live = self._live
        touched: list[Outbox] = []
        stopped: list[Sequence] = []
        for key, ids in deltas:
            sequence = live.get(key)
            if sequence is None:
                continue  # cancelled, or a canary
            if sequence.plain:
                text = sequence.assembler.push(ids)
            else:
                ids, text, stop = sequence.cut(ids)  # noqa: PLW2901
                if stop:
                    del live[key]
                    stopped.append(sequence)
            outbox = sequence.outbox
            outbox.add(sequence.slot, sequence.attempt, ids, text)
            if not sequence.started:
                self._first_token(sequence)
            if not outbox.touched:
                outbox.touched = True
                touched.append(outbox)
        self.tokens += len(deltas)
        if logprobs:
            self._add_logprobs(logprobs)
        if stopped or finished:
            self._end_all(stopped, finished, touched)
        for outbox in touched:
            outbox.step_done()

    def _first_token(self, sequence: Sequence) -> None:
        sequence.started = True
        sequence.outbox.decoding += 1
        sequence.outbox.urgent = True
        self.changed.notify()

    def _add_logprobs(self, logprobs: SequenceOf[Logprobs]) -> None:
        for key, record in logprobs:
            sequence = self._live.get(key)
            if sequence is not None:
                record.slot, record.attempt = sequence.slot, sequence.attempt
                sequence.outbox.add_logprobs(record)

    def _end_all(
        self, stopped: SequenceOf[Sequence], finished: SequenceOf[Finished], touched: list[Outbox]
    ) -> None:
        for sequence in stopped:
            self._break_off(sequence, common_pb2.FINISH_REASON_STOP, "stop")
        for record in finished:
            sequence_or_none = self._live.get(record.key)
            if sequence_or_none is not None:
                self._finish(sequence_or_none, record)
                if not sequence_or_none.outbox.touched:
                    sequence_or_none.outbox.touched = True
                    touched.append(sequence_or_none.outbox)
            elif record.key in self._canaries and not self._canaries[record.key].done():
                self._canaries[record.key].set_result(record)

    def _break_off(
        self,
        sequence: Sequence,
        reason: common_pb2.FinishReason.ValueType,
        outcome: str,
        error: FleetError | None = None,
    ) -> None:
        """Ends on the worker's side what the engine would go on with."""
        record = sequence.engine.abort(sequence.key)
        self._end(sequence, sequence.terminal(reason, record, error), outcome)

    def _finish(self, sequence: Sequence, record: Finished) -> None:
        """The engine's last word: the rest of the text, unless the sequence broke off to go on elsewhere."""
        if record.failure is None:
            tail = sequence.assembler.flush()
            if tail:
                sequence.outbox.add(sequence.slot, sequence.attempt, (), tail)
        stop_matched = bool(sequence.assembler.stop_matched)
        reason = common_pb2.FINISH_REASON_STOP if stop_matched else record.reason
        self._end(sequence, sequence.terminal(reason, record, record.failure), _outcome(record))

    def _start(
        self, session: Session, submit: worker_pb2.Submit, token_ids: SequenceOf[int]
    ) -> Sequence | None:
        resident = self._resident(submit)
        engine, pieces = resident.engine, resident.pieces
        assert engine is not None
        assert pieces is not None
        sampling = submit.sampling
        check_lengths(submit, token_ids, resident)
        check_features(sampling, resident)
        if len(self._live) >= self._queue_limit:
            raise FleetError(
                common_pb2.REASON_QUEUE_FULL, f"this worker already has {self._queue_limit} sequences"
            )
        generated = token_ids[submit.prompt_tokens :]
        sequence = Sequence(
            key=next(self._keys),
            slot=submit.slot,
            attempt=submit.attempt,
            session=session,
            outbox=session.outbox,
            resident=resident,
            engine=engine,
            assembler=TextAssembler(pieces, sampling.stop, sampling.min_tokens),
            stop_ids=frozenset(sampling.stop_token_ids),
            plain=not sampling.stop and not sampling.stop_token_ids,
            protected=max(0, sampling.min_tokens - len(generated)),
        )
        if generated and self._resumed_at_its_end(sequence, submit, generated):
            return None
        engine.submit(
            Generation(
                sequence.key,
                token_ids,
                submit.prompt_tokens,
                submit.max_tokens,
                sampling,
                tuple(submit.block_hashes),
            )
        )
        self._live[sequence.key] = sequence
        resident.running += 1
        resident.arrivals += 1
        if submit.context.deadline_ms:
            sequence.deadline = self._loop.call_later(
                submit.context.deadline_ms / 1000, self._deadline_passed, sequence
            )
        self.changed.notify()
        return sequence

    def _resident(self, submit: worker_pb2.Submit) -> Resident:
        if self.refuse_with is not None:
            raise self.refuse_with
        resident = self._residents.get(submit.model)
        if resident is None:
            raise FleetError(
                common_pb2.REASON_NOT_RESIDENT, f"model {submit.model} is not on this worker", field="model"
            )
        if not resident.accepts:
            raise resident.not_resident()
        if submit.residency_epoch not in (0, resident.epoch):
            raise FleetError(
                common_pb2.REASON_NOT_RESIDENT,
                f"model {submit.model} is here at epoch {resident.epoch}, not {submit.residency_epoch}",
                field="residency_epoch",
            )
        return resident

    def _resumed_at_its_end(
        self, sequence: Sequence, submit: worker_pb2.Submit, generated: SequenceOf[int]
    ) -> bool:
        """Rebuilds the text; True when nothing is left to generate, since only the last word got lost."""
        assembler = sequence.assembler
        try:
            text = assembler.resume(generated, submit.emitted_chars)
        except ValueError as error:
            raise FleetError(
                common_pb2.REASON_RESUME_IMPOSSIBLE, str(error), field="emitted_chars"
            ) from error
        stopped = bool(assembler.stop_matched)
        if not stopped and submit.max_tokens == 0:
            text += assembler.flush()
        if text:
            sequence.outbox.add(sequence.slot, sequence.attempt, (), text)
            sequence.outbox.urgent = True
        if not stopped and submit.max_tokens:
            return False
        reason = common_pb2.FINISH_REASON_STOP if stopped else common_pb2.FINISH_REASON_LENGTH
        sequence.outbox.end(sequence.terminal(reason))
        self._count("stop" if stopped else "length")
        return True

    def _deadline_passed(self, sequence: Sequence) -> None:
        sequence.deadline = None
        error = FleetError(common_pb2.REASON_DEADLINE_EXCEEDED, "the request's deadline passed on the worker")
        self.fail((sequence,), error)

    def _end(self, sequence: Sequence, terminal: worker_pb2.Terminal, outcome: str) -> None:
        self._forget(sequence, outcome)
        sequence.outbox.end(terminal)

    def _forget(self, sequence: Sequence, outcome: str) -> None:
        self._live.pop(sequence.key, None)
        if sequence.deadline is not None:
            sequence.deadline.cancel()
        if sequence.started:
            sequence.outbox.decoding -= 1
        sequence.resident.running -= 1
        sequence.resident.last_used = time.monotonic()
        sequence.session.ended(sequence)
        self._count(outcome)
        self.changed.notify()

    def _count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


def _outcome(record: Finished) -> str:
    if record.failure is not None:
        return record.failure.reason_name
    return "stop" if record.reason == common_pb2.FINISH_REASON_STOP else "length"
