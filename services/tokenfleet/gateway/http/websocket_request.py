"""One request on a WebSocket: the task that serves it, and the messages that tell of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Any

import orjson

from tokenfleet.gateway.api_keys.keyring import Caller
from tokenfleet.gateway.core import Gateway, Order
from tokenfleet.gateway.fallback import Fallback, late
from tokenfleet.gateway.held_text import keep
from tokenfleet.gateway.http.answers import Request, order_of, prepare, provenance_of, sequences_of, usage_of
from tokenfleet.gateway.http.chunks import FINISH_NAMES
from tokenfleet.gateway.http.logprobs import Logprobs
from tokenfleet.gateway.http.schemas import ChatCompletionRequest
from tokenfleet.gateway.http.websocket_connection import (
    WebSocketConnection,
    error_message,
    message_frame,
    text_frame,
)
from tokenfleet.gateway.sequence import Sequence
from tokenfleet.gateway.urgency import Urgency
from tokenfleet.runtime.errors import FleetError, reason_name
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import worker_pb2

ID_BYTES = 8
ENTRY_BYTES = 64

log = get_logger(__name__)


class SocketRequest:
    """Runs by itself from the moment it is made; its last message is `error`, or `finish` with the usage.

    It is its own sink. While the client reads too slowly, text is held back and merged.
    """

    def __init__(
        self,
        gateway: Gateway,
        connection: WebSocketConnection,
        request: Request,
        request_id: str,
        timeout_s: float,
        on_end: Callable[[SocketRequest], None],
        *,
        caller: Caller,
        fallback: bool,
        urgency: Urgency,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._gateway = gateway
        self._connection = connection
        self._request = request
        self.request_id = request_id
        self._caller = caller
        self._may_fall_back = fallback
        self._fallback: Fallback | None = None
        self._sequences: SequenceOf[Sequence] = ()
        self._urgency = urgency
        self._on_end = on_end
        self._cause: FleetError | None = None
        self._moulds: dict[int, bytes] = {}
        self._held: dict[int, tuple[list[str], list[int]]] = {}
        self._held_bytes = 0
        self._logprobs: Logprobs | None = None
        if request.alternatives is not None:
            chat = isinstance(request, ChatCompletionRequest)
            self._logprobs = Logprobs(chat=chat, alternatives=request.alternatives)
        self._plain = self._logprobs is None and not request.return_token_ids
        self._started = time.perf_counter()
        self._expiry = loop.call_later(timeout_s, self._expire, timeout_s)
        gateway.metrics.begun()
        self.task = loop.create_task(self._serve(loop.time() + timeout_s))
        self.task.add_done_callback(self._ended)

    def stop(self, cause: FleetError) -> None:
        """Ends it from outside; the client is told the cause."""
        if self._cause is None:
            self._cause = cause
            self.task.cancel()

    async def open(self) -> None:
        """Nothing precedes the first delta."""

    def delta(self, index: int, text: str, ids: list[int]) -> None:
        if self._connection.close_sent:
            return
        if self._held or self._connection.write_paused:
            self._hold(index, text, ids)
        elif not self._plain:
            self._gateway.writes.add((self._connection.transport, self._rich_frame(index, text, ids)))
        elif text:
            self._gateway.writes.add((self._connection.transport, self._frame(index, text)))

    def logprobs(self, index: int, entry: worker_pb2.TokenLogprobs) -> None:
        if self._logprobs is not None:
            self._logprobs.add(index, entry)
            if self._connection.write_paused:
                self._count(ENTRY_BYTES * (1 + len(entry.top)))

    def loading(self, progress: pb.LoadProgress) -> None:
        if self._connection.write_paused:
            return
        stage = pb.LoadProgress.Stage.Name(progress.stage).removeprefix("STAGE_").lower()
        self._say(
            "loading",
            model=progress.model,
            stage=stage,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            eta_s=progress.eta_ms / 1000 if progress.eta_ms else None,
        )

    def flush(self) -> None:
        """Writes what was held back, one message per answer."""
        held, self._held = self._held, {}
        self._count(-self._held_bytes)
        for index, (texts, ids) in held.items():
            text = "".join(texts)
            if not self._plain:
                self._connection.write(self._rich_frame(index, text, ids))
            elif text:
                self._connection.write(self._frame(index, text))

    async def _serve(self, deadline: float) -> None:
        request = self._request
        order = order_of(
            request,
            self.request_id,
            deadline,
            self._caller,
            urgency=self._urgency,
            fallback=self._may_fall_back,
        )
        await self._gateway.answer(order, self._attempt, self._instead)

    def _instead(self, fallback: Fallback) -> None:
        self._fallback = fallback
        self._say("fallback", model=fallback.model, requested=fallback.requested, reason=fallback.reason)

    async def _attempt(self, order: Order) -> None:
        request = self._request
        prepared = await prepare(self._gateway, request, order)
        choices = request.n or 1
        sequences = self._sequences = sequences_of(prepared, choices, self)
        await self._gateway.run(sequences)
        self.flush()
        for sequence in sequences[:-1]:
            self._finish(sequence)
        extra = provenance_of(sequences, with_ids=request.return_token_ids, fallback=self._fallback)
        self._finish(sequences[-1], usage=usage_of(sequences, choices), **extra)

    def _finish(self, sequence: Sequence, **last: Any) -> None:
        reason = FINISH_NAMES.get(sequence.finish_reason, "stop")
        self._say("finish", index=sequence.index, finish_reason=reason, **last)

    def _say(self, kind: str, **fields: Any) -> None:
        self._connection.write(message_frame({"type": kind, "request_id": self.request_id, **fields}))

    def _frame(self, index: int, text: str) -> bytes:
        head = self._moulds.get(index)
        if head is None:
            whole = orjson.dumps({"type": "delta", "request_id": self.request_id, "index": index, "text": ""})
            head = self._moulds[index] = whole.removesuffix(b'""}')
        return text_frame(b"%b%b}" % (head, orjson.dumps(text)))

    def _rich_frame(self, index: int, text: str, ids: list[int]) -> bytes:
        message: dict[str, Any] = {
            "type": "delta",
            "request_id": self.request_id,
            "index": index,
            "text": text,
        }
        if self._request.return_token_ids:
            message["token_ids"] = ids
        if self._logprobs is not None:
            message["logprobs"] = self._logprobs.take(index)
        return message_frame(message)

    def _hold(self, index: int, text: str, ids: list[int]) -> None:
        texts, collected = self._held.setdefault(index, ([], []))
        keep(texts, text)
        if self._plain:
            self._count(len(text))
        else:
            collected += ids
            self._count(len(text) + ID_BYTES * len(ids))

    def _count(self, more: int) -> None:
        """What waits for this client, over all its requests, is bounded."""
        limit = self._gateway.settings.client_buffer_bytes
        self._held_bytes += more
        self._connection.held_bytes += more
        if self._connection.held_bytes > limit:
            message = f"more than {limit} bytes wait for this client: read faster"
            error = FleetError(pb.REASON_SLOW_CONSUMER, message)
            self._connection.hang_up_on(error)
            self.stop(error)

    def _expire(self, seconds: float) -> None:
        self.stop(late(self._sequences, seconds))

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Also hears of a task that was stopped before it had begun."""
        self._expiry.cancel()
        self._sequences = ()
        self._count(-self._held_bytes)
        failure = self._failure(task)
        code = "200" if failure is None else reason_name(failure.reason)
        self._gateway.metrics.ended(code, time.perf_counter() - self._started)
        if failure is not None:
            self._connection.write(message_frame(error_message(failure, self.request_id)))
        self._on_end(self)

    def _failure(self, task: asyncio.Task[None]) -> FleetError | None:
        if task.cancelled():
            return self._cause or FleetError(pb.REASON_CANCELLED, "cancelled")
        error = task.exception()
        if error is None or isinstance(error, FleetError):
            return error
        log.error("request failed", request=self.request_id, exc_info=error)
        return FleetError(pb.REASON_INTERNAL, "internal error; the log has the details")
