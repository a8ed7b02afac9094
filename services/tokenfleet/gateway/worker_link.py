"""The gateway's end of the stream that carries all its sequences on one worker.

One `StepOutputs` brings the tokens of many sequences; the loop over it is the hottest code of the fleet.
There is no queue, no task and no await between a worker's message and the client's socket, and for plain text
not even a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

from tokenfleet.gateway.lanes import MOST_SHORT, SIZE_LINES, dumps, size_line
from tokenfleet.gateway.metrics import GatewayMetrics
from tokenfleet.gateway.sequence import Sequence
from tokenfleet.gateway.write_batch import WriteBatch
from tokenfleet.runtime.links import DialError, Link, dial
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import router_pb2, worker_pb2

METHOD = "/tokenfleet.v1.Worker/Serve"
# Ids in one message; longer prompts follow in chunks, so that cancels and other submits are not held up.
CHUNK_IDS = 16_384

log = get_logger(__name__)


class WorkerLink:
    """Slots, submits and cancels towards one worker; deltas and terminals from it."""

    def __init__(
        self, link: Link[worker_pb2.ServeRequest], metrics: GatewayMetrics, writes: WriteBatch
    ) -> None:
        self._link = link
        self._metrics = metrics
        self._writes = writes
        self._loop = asyncio.get_running_loop()
        self._slots: list[Sequence | None] = []
        self._free: list[int] = []
        self._outgoing: worker_pb2.ServeRequest | None = None
        self.alive = True

    def submit(
        self, sequence: Sequence, placement: router_pb2.Placement
    ) -> asyncio.Future[worker_pb2.Terminal]:
        """Starts the sequence's current attempt; the answer, its `ended` future, gets the terminal record."""
        sequence.ended = self._loop.create_future()
        sequence.slot = self._take_slot(sequence)
        sequence.submitted_at = self._loop.time()
        sequence.first_token_at = sequence.last_token_at = 0.0
        submit = self._queued().submits.add()
        sequence.fill(submit, placement, sequence.submitted_at)
        if len(submit.token_ids) > CHUNK_IDS:
            self._split(submit)
        return sequence.ended

    def cancel(self, sequence: Sequence) -> None:
        """Forgets the sequence; its slot stays taken until the worker's last word about it."""
        if not self.alive or sequence.slot < 0:
            return
        self._slots[sequence.slot] = None
        self._queued().cancels.append(worker_pb2.Cancel(slot=sequence.slot, attempt=sequence.attempt))
        sequence.slot = -1

    def close(self) -> None:
        self._link.close()

    def received(self, messages: SequenceOf[worker_pb2.ServeResponse]) -> None:
        steps = [message.step for message in messages]
        if len(steps) > 1 and _overlap(steps):
            steps = [_merge(steps)]
        now = self._loop.time()
        for step in steps:
            self._take_deltas(step, now)
        self._writes.flush()
        for step in steps:
            for terminal in step.terminals:
                self._take_terminal(terminal)

    def writable_again(self) -> None:
        """Nothing waits for it: what the gateway sends to workers is small and bounded by its requests."""

    def closed(self, cause: str) -> None:
        self.alive = False
        lost = worker_pb2.Terminal(
            finish_reason=pb.FINISH_REASON_FAILED,
            failure=pb.Failure(
                reason=pb.REASON_WORKER_LOST, message=f"the worker's connection broke: {cause}"
            ),
        )
        running = [sequence for sequence in self._slots if sequence is not None]
        self._slots.clear()
        for sequence in running:
            sequence.slot = -1
            sequence.end(lost)
        log.info("worker link closed", peer=self._link.peer, cause=cause, running=len(running))

    def _split(self, submit: worker_pb2.Submit) -> None:
        """Lets the first ids go with the submit that was queued last, and the others follow."""
        ids = list(submit.token_ids)
        del submit.token_ids[CHUNK_IDS:]
        starts = range(CHUNK_IDS, len(ids), CHUNK_IDS)
        submit.pending_chunks = len(starts)
        for start in starts:
            chunk = worker_pb2.SubmitChunk(slot=submit.slot, attempt=submit.attempt)
            chunk.token_ids.extend(ids[start : start + CHUNK_IDS])
            self._flush()
            self._queued().chunks.append(chunk)

    def _take_slot(self, sequence: Sequence) -> int:
        if self._free:
            slot = self._free.pop()
            self._slots[slot] = sequence
            return slot
        self._slots.append(sequence)
        return len(self._slots) - 1

    def _take_deltas(self, step: worker_pb2.StepOutputs, now: float) -> None:
        if step.logprobs:
            self._take_logprobs(step.logprobs)
        sequences, add, size_lines = self._slots, self._writes.add, SIZE_LINES
        since: dict[float, int] = {}  # deltas by the time of the one before: a step has few such times
        # a slice is a list made in C; iterating the message's own containers costs three times as much
        ids = step.token_ids[:]
        start = 0
        for slot, attempt, count, text in zip(
            step.slots[:], step.attempts[:], step.token_counts[:], step.texts[:], strict=True
        ):
            end = start + count
            sequence = sequences[slot]
            if sequence is None or sequence.attempt != attempt:
                start = end
                continue
            last = sequence.last_token_at
            sequence.last_token_at = now
            if last:
                since[last] = since.get(last, 0) + 1
            else:
                self._take_first(sequence, now)
            if count == 1:
                sequence.ids.append(ids[start])
            else:
                sequence.ids += ids[start:end]
            lane = sequence.lane
            if text:
                sequence.emitted_chars += len(text)
            if lane is None:
                sequence.sink.delta(sequence.index, text, ids[start:end])
            elif text:
                transport, head, tail, around = lane
                payload = dumps(text)
                size = around + len(payload)
                line = size_lines[size] if size < MOST_SHORT else size_line(size)
                add((transport, b"".join((line, head, payload, tail))))
            start = end
        self._metrics.completion_tokens += start
        for last, deltas in since.items():
            self._metrics.inter_token_latency.observe(now - last, deltas)

    def _take_first(self, sequence: Sequence, now: float) -> None:
        sequence.first_token_at = now
        self._metrics.ttft.observe(now - sequence.submitted_at)

    def _take_logprobs(self, entries: Iterable[worker_pb2.TokenLogprobs]) -> None:
        for entry in entries:
            sequence = self._slots[entry.slot]
            if sequence is not None and sequence.attempt == entry.attempt:
                sequence.sink.logprobs(sequence.index, entry)

    def _take_terminal(self, terminal: worker_pb2.Terminal) -> None:
        slot = terminal.slot
        sequence = self._slots[slot]
        self._slots[slot] = None
        self._free.append(slot)
        if sequence is not None:
            sequence.slot = -1
            sequence.end(terminal)

    def _queued(self) -> worker_pb2.ServeRequest:
        """The message that leaves at the end of this turn of the event loop."""
        if self._outgoing is None:
            self._outgoing = worker_pb2.ServeRequest()
            self._loop.call_soon(self._flush)
        return self._outgoing

    def _flush(self) -> None:
        if self._outgoing is not None:
            outgoing, self._outgoing = self._outgoing, None
            self._link.send(outgoing)


def _overlap(steps: SequenceOf[worker_pb2.StepOutputs]) -> bool:
    """Whether some sequence has deltas in more than one of the steps."""
    seen: set[int] = set()
    for step in steps:
        slots = step.slots[:]
        if not seen.isdisjoint(slots):
            return True
        seen.update(slots)
    return False


def _merge(steps: SequenceOf[worker_pb2.StepOutputs]) -> worker_pb2.StepOutputs:
    """Several steps as one, a sequence's deltas joined: a late gateway makes larger frames, not more."""
    deltas: dict[tuple[int, int], tuple[list[str], list[int]]] = {}
    merged = worker_pb2.StepOutputs()
    for step in steps:
        ids = list(step.token_ids)
        start = 0
        for slot, attempt, count, text in zip(
            step.slots, step.attempts, step.token_counts, step.texts, strict=True
        ):
            texts, collected = deltas.setdefault((slot, attempt), ([], []))
            texts.append(text)
            collected += ids[start : start + count]
            start += count
        merged.logprobs.extend(step.logprobs)
        merged.terminals.extend(step.terminals)
    for (slot, attempt), (texts, collected) in deltas.items():
        merged.slots.append(slot)
        merged.attempts.append(attempt)
        merged.token_counts.append(len(collected))
        merged.texts.append("".join(texts))
        merged.token_ids.extend(collected)
    return merged


class WorkerLinks:
    """One link per worker life, opened when the router first places something there."""

    def __init__(self, metrics: GatewayMetrics, writes: WriteBatch, gateway_id: str, *, frames: bool) -> None:
        self._metrics = metrics
        self._writes = writes
        self._gateway_id = gateway_id
        self._frames = frames
        self._links: dict[str, WorkerLink] = {}
        self._dialing: dict[str, asyncio.Task[WorkerLink]] = {}

    async def get(self, placement: router_pb2.Placement) -> WorkerLink:
        """The link to the placed worker. Raises DialError when it cannot be reached."""
        known = self._links.get(placement.worker_id)
        if known is not None and known.alive:
            return known
        self._forget_dead()
        dialing = self._dialing.get(placement.worker_id)
        if dialing is None:
            dialing = asyncio.create_task(self._dial(placement.worker_id, placement.endpoint))
            self._dialing[placement.worker_id] = dialing
            dialing.add_done_callback(lambda _: self._dialing.pop(placement.worker_id, None))
        link = await asyncio.shield(dialing)
        if not link.alive:
            raise DialError(f"{placement.endpoint}: the connection broke at once")
        return link

    async def close(self) -> None:
        for dialing in tuple(self._dialing.values()):
            dialing.cancel()
        for link in self._links.values():
            link.close()

    async def _dial(self, worker_id: str, endpoint: str) -> WorkerLink:
        made: list[WorkerLink] = []

        def accept(link: Link[worker_pb2.ServeRequest]) -> WorkerLink:
            made.append(WorkerLink(link, self._metrics, self._writes))
            return made[0]

        link = await dial(
            endpoint,
            METHOD,
            worker_pb2.ServeRequest,
            worker_pb2.ServeResponse.FromString,
            accept,
            frames=self._frames,
        )
        link.send(worker_pb2.ServeRequest(gateway_id=self._gateway_id))
        self._links[worker_id] = made[0]
        log.info("worker link open", worker=worker_id, endpoint=endpoint)
        return made[0]

    def _forget_dead(self) -> None:
        for worker_id in [worker_id for worker_id, link in self._links.items() if not link.alive]:
            del self._links[worker_id]
