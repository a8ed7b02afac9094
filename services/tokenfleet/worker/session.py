"""One gateway's stream: slots, submits in chunks, cancels that overtake them."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from tokenfleet.runtime.links import Link
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.dispatcher import Dispatcher
from tokenfleet.worker.outbox import Outbox
from tokenfleet.worker.sequence import Sequence, invalid

log = get_logger(__name__)


@dataclass(slots=True)
class _Partial:
    """A submit whose ids are still arriving."""

    submit: worker_pb2.Submit
    token_ids: list[int]
    pending: int


class Session:
    """The handler of one `Serve` link. Broken, it takes all its sequences with it at once."""

    def __init__(
        self,
        link: Link[worker_pb2.ServeResponse],
        dispatcher: Dispatcher,
        *,
        admitted: Callable[[str], None],
        ended: Callable[[Session], None],
        coalesce_s: float,
        stuck_s: float,
    ) -> None:
        self._link = link
        self._dispatcher = dispatcher
        self._admitted = admitted
        self._ended = ended
        self._stuck_s = stuck_s
        self._sequences: dict[int, Sequence] = {}  # by slot
        self._partials: dict[int, _Partial] = {}
        self.outbox = Outbox(link, coalesce_s=coalesce_s, stuck_s=stuck_s, stuck=self._disconnect)
        self.gateway = link.peer

    def greet(self, worker_id: str) -> None:
        self._link.send(worker_pb2.ServeResponse(worker_id=worker_id))

    def announce_draining(self, grace_s: float) -> None:
        draining = worker_pb2.Draining(grace_ms=round(grace_s * 1000))
        self._link.send(worker_pb2.ServeResponse(draining=draining))

    def close(self) -> None:
        self.outbox.flush()
        self._link.close()

    def received(self, messages: SequenceOf[worker_pb2.ServeRequest]) -> None:
        """All that one read brought. A cancel beats a submit that came with it."""
        cancelled = {(one.slot, one.attempt) for message in messages for one in message.cancels}
        for slot, attempt in cancelled:
            self._cancel(slot, attempt)
        for message in messages:
            if message.gateway_id:
                self.gateway = message.gateway_id
            for submit in message.submits:
                self._take(submit, cancelled)
            for chunk in message.chunks:
                self._take_chunk(chunk)
        self.outbox.step_done()

    def writable_again(self) -> None:
        self.outbox.writable_again()

    def closed(self, cause: str) -> None:
        self.outbox.close()
        self._partials.clear()
        running = tuple(self._sequences.values())
        for sequence in running:
            self._dispatcher.drop(sequence)
        log.info("gateway left", gateway=self.gateway, cause=cause, aborted=len(running))
        self._ended(self)

    def ended(self, sequence: Sequence) -> None:
        """Called by the dispatcher for each sequence of this session, exactly once."""
        if self._sequences.get(sequence.slot) is sequence:
            del self._sequences[sequence.slot]

    def _take(self, submit: worker_pb2.Submit, cancelled: set[tuple[int, int]]) -> None:
        if submit.reservation_id:
            self._admitted(submit.reservation_id)
        if (submit.slot, submit.attempt) in cancelled:
            self._say_cancelled(submit.slot, submit.attempt)
        elif submit.slot in self._sequences or submit.slot in self._partials:
            error = invalid("slot", f"{submit.slot} is still in use on this stream")
            self._say_failed(submit, error.to_failure())
        elif submit.pending_chunks:
            self._partials[submit.slot] = _Partial(submit, list(submit.token_ids), submit.pending_chunks)
        else:
            self._start(submit, list(submit.token_ids))

    def _take_chunk(self, chunk: worker_pb2.SubmitChunk) -> None:
        partial = self._partials.get(chunk.slot)
        if partial is None or partial.submit.attempt != chunk.attempt:
            return  # of a submit that was cancelled
        partial.token_ids.extend(chunk.token_ids)
        partial.pending -= 1
        if partial.pending == 0:
            del self._partials[chunk.slot]
            self._start(partial.submit, partial.token_ids)

    def _start(self, submit: worker_pb2.Submit, token_ids: list[int]) -> None:
        sequence = self._dispatcher.submit(self, submit, token_ids)
        if sequence is not None:
            self._sequences[submit.slot] = sequence

    def _cancel(self, slot: int, attempt: int) -> None:
        sequence, partial = self._sequences.get(slot), self._partials.get(slot)
        if sequence is not None and sequence.attempt == attempt:
            self._dispatcher.cancel(sequence)
        elif partial is not None and partial.submit.attempt == attempt:
            del self._partials[slot]
            self._say_cancelled(slot, attempt)

    def _say_cancelled(self, slot: int, attempt: int) -> None:
        reason = common_pb2.FINISH_REASON_CANCELLED
        self.outbox.end(worker_pb2.Terminal(slot=slot, attempt=attempt, finish_reason=reason))

    def _say_failed(self, submit: worker_pb2.Submit, failure: common_pb2.Failure) -> None:
        reason = common_pb2.FINISH_REASON_FAILED
        self.outbox.end(
            worker_pb2.Terminal(
                slot=submit.slot, attempt=submit.attempt, finish_reason=reason, failure=failure
            )
        )

    def _disconnect(self) -> None:
        log.warning("gateway takes nothing, disconnected", gateway=self.gateway, after_s=self._stuck_s)
        self._link.abort()
