"""`/v1/chat/completions` and `/v1/completions`, streamed and whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as SequenceOf
from functools import partial
from typing import Any

import orjson

from tokenfleet.gateway.api_keys.keyring import Caller
from tokenfleet.gateway.core import Gateway, Order
from tokenfleet.gateway.fallback import Fallback, late
from tokenfleet.gateway.http.answers import (
    Prepared,
    Request,
    order_of,
    prepare,
    provenance_of,
    sequences_of,
    usage_of,
)
from tokenfleet.gateway.http.chunks import DONE, FINISH_NAMES, ChunkStyle, chunk, event
from tokenfleet.gateway.http.connection import Connection
from tokenfleet.gateway.http.errors import error_body, error_headers, status_of
from tokenfleet.gateway.http.guard import SCOPE_KEY
from tokenfleet.gateway.http.headers import (
    CALLER_KEY,
    FALLBACK,
    FIELDS_KEY,
    Fields,
    fallback_allowed,
    request_id,
    request_timeout_s,
    urgency,
)
from tokenfleet.gateway.http.logprob_sink import LogprobStreamSink
from tokenfleet.gateway.http.logprobs import Logprobs
from tokenfleet.gateway.http.response import Response, Send
from tokenfleet.gateway.http.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    parse_in_turns,
)
from tokenfleet.gateway.http.sinks import Interruption, StreamSink, WholeSink
from tokenfleet.gateway.sequence import Sequence
from tokenfleet.runtime.errors import FleetError, reason_name
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2 as pb

Receive = Callable[[], Awaitable[dict[str, Any]]]

JSON = (b"content-type", b"application/json")

ABORT_AFTER_S = 5.0

log = get_logger(__name__)


class CompletionEndpoint:
    """An ASGI application for one of the two paths."""

    def __init__(self, gateway: Gateway, *, chat: bool) -> None:
        self._gateway = gateway
        self._chat = chat

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        metrics = self._gateway.metrics
        connection: Connection = scope[SCOPE_KEY]
        started = time.perf_counter()
        code = "200"
        metrics.begun()
        with Interruption(connection) as interruption:
            response = Response.of(send)
            answer = Answer(self._gateway, connection, response, interruption, scope, chat=self._chat)
            try:
                await answer.serve(response.arrived_body() or await read_body(receive))
            except FleetError as error:
                code = reason_name(error.reason)
                await answer.fail(error)
            except asyncio.CancelledError:
                cause = interruption.resolve() or FleetError(
                    pb.REASON_DRAINING, "the gateway is stopping: send the request again", retry_after_s=1.0
                )
                code = reason_name(cause.reason)
                await answer.fail(cause)
            except Exception:
                log.exception("request failed", request=answer.request_id)
                code = "internal"
                await answer.fail(FleetError(pb.REASON_INTERNAL, "internal error; the log has the details"))
            finally:
                metrics.ended(code, time.perf_counter() - started)


class Answer:
    """One request being answered on its connection."""

    def __init__(
        self,
        gateway: Gateway,
        connection: Connection,
        response: Response,
        interruption: Interruption,
        scope: dict[str, Any],
        *,
        chat: bool,
    ) -> None:
        self._gateway = gateway
        self._connection = connection
        self._response = response
        self._interruption = interruption
        self._chat = chat
        self._fields: Fields = scope[FIELDS_KEY]
        self._caller: Caller = scope[CALLER_KEY]
        self.request_id = request_id(self._fields, "chatcmpl" if chat else "cmpl")
        self._created = int(time.time())
        self._headers = connection.rules.headers(self._fields, self.request_id)
        self._stream: StreamSink | None = None
        self._sequences: SequenceOf[Sequence] = ()
        self._fallback: Fallback | None = None
        self._begun_at = connection.loop.time()

    async def serve(self, body: bytes) -> None:
        """Raises FleetError; what the client sees of it is up to `fail`."""
        limits = self._connection.rules.limits
        if self._chat:
            request: Request = await parse_in_turns(ChatCompletionRequest, body, limits)
        else:
            request = await parse_in_turns(CompletionRequest, body, limits)
        timeout_s = request_timeout_s(self._fields, self._gateway.settings.request_timeout_s)
        deadline = self._connection.loop.time() + timeout_s
        self._interruption.expire_at(deadline, lambda: late(self._sequences, timeout_s))
        order = order_of(
            request,
            self.request_id,
            deadline,
            self._caller,
            urgency=urgency(self._fields),
            fallback=fallback_allowed(self._fields),
        )
        try:
            await self._gateway.answer(order, partial(self._attempt, request), self._instead)
        finally:
            self._sequences = ()

    async def _attempt(self, request: Request, order: Order) -> None:
        """With the model that was asked for, or with one that stands in for it."""
        prepared = await prepare(self._gateway, request, order)
        choices = request.n or 1
        if request.stream:
            await self._serve_stream(request, order.model, prepared, choices)
        else:
            await self._serve_whole(request, order.model, prepared, choices)

    def _instead(self, fallback: Fallback) -> None:
        self._fallback = fallback
        self._headers[:] = [header for header in self._headers if header[0] != FALLBACK]
        self._headers.append((FALLBACK, fallback.reason.encode()))
        if self._stream is not None:
            self._stream.remark(f"fallback: {fallback.words()}")

    async def fail(self, error: FleetError) -> None:
        """A status and JSON while nothing was sent; afterwards a typed event, and no `[DONE]`."""
        if error.reason == pb.REASON_CANCELLED:
            return
        stream = self._stream
        if stream is not None:
            stream.give_up_opening()
        if stream is None or not stream.started:
            await self._respond(status_of(error), orjson.dumps(error_body(error)), error_headers(error))
            return
        if error.reason == pb.REASON_SLOW_CONSUMER:
            self._hang_up(error)
            return
        await stream.finish(chunk(event(error_body(error))))

    async def _serve_whole(self, request: Request, model: str, prepared: Prepared, choices: int) -> None:
        logprobs = self._logprobs(request)
        sink = WholeSink(len(prepared) * choices, logprobs)
        sequences = self._sequences = sequences_of(prepared, choices, sink)
        await self._gateway.run(sequences)
        answer: dict[str, Any] = {
            "id": self.request_id,
            "object": "chat.completion" if self._chat else "text_completion",
            "created": self._created,
            "model": model,
            "choices": [
                self._choice(sequence, sink.text(sequence.index), logprobs, with_ids=request.return_token_ids)
                for sequence in sequences
            ],
            "usage": usage_of(sequences, choices),
        }
        answer |= provenance_of(sequences, with_ids=request.return_token_ids, fallback=self._fallback)
        await self._respond(200, orjson.dumps(answer))

    async def _serve_stream(self, request: Request, model: str, prepared: Prepared, choices: int) -> None:
        style = ChunkStyle(
            chat=self._chat,
            answer_id=self.request_id,
            created=self._created,
            model=model,
            usage=request.wants_usage,
        )
        sink = self._stream_in(style, request, len(prepared) * choices)
        waking = self._connection.waking
        waking.set(self._begun_at + self._gateway.settings.decision_wait_s, sink.open_while_waiting)
        sequences = self._sequences = sequences_of(prepared, choices, sink)
        sink.serve(sequences)
        try:
            await self._gateway.run(sequences)
        finally:
            waking.unset()
            sink.serve(())
        frames = [style.finish(sequence.index, sequence.finish_reason) for sequence in sequences]
        if request.wants_usage:
            extra = provenance_of(sequences, with_ids=request.return_token_ids, fallback=self._fallback)
            frames.append(style.usage(usage_of(sequences, choices), extra))
        frames.append(chunk(DONE))
        await sink.finish(b"".join(frames))

    def _stream_in(self, style: ChunkStyle, request: Request, choices: int) -> StreamSink:
        """The sink of this answer, which is one whoever it is that answers."""
        if self._stream is not None:
            self._stream.change(style)
            return self._stream
        logprobs = self._logprobs(request)
        kind = partial(LogprobStreamSink, logprobs=logprobs) if logprobs else StreamSink
        sink = self._stream = kind(
            self._response,
            self._connection,
            style,
            self._gateway.writes,
            headers=self._headers,
            choices=choices,
            with_ids=request.return_token_ids,
            buffer_bytes=self._gateway.settings.client_buffer_bytes,
            on_slow=self._interruption.stop,
        )
        self._interruption.on_writable, self._interruption.on_paused = sink.flush, sink.pause
        return sink

    def _logprobs(self, request: Request) -> Logprobs | None:
        wanted = request.alternatives
        return None if wanted is None else Logprobs(chat=self._chat, alternatives=wanted)

    def _choice(
        self, sequence: Sequence, text: str, logprobs: Logprobs | None, *, with_ids: bool
    ) -> dict[str, Any]:
        content = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {
            "index": sequence.index,
            **content,
            "logprobs": logprobs and logprobs.take(sequence.index),
            "finish_reason": FINISH_NAMES.get(sequence.finish_reason, "stop"),
        }
        return choice | {"token_ids": sequence.ids} if with_ids else choice

    async def _respond(self, status: int, body: bytes, headers: SequenceOf[tuple[bytes, bytes]] = ()) -> None:
        await self._response.whole(status, [JSON, *self._headers, *headers], body)

    def _hang_up(self, error: FleetError) -> None:
        """Tells a client that does not read, if it ever does, and lets go of the connection."""
        transport = self._connection.transport
        transport.write(chunk(event(error_body(error))))
        transport.close()
        self._connection.loop.call_later(ABORT_AFTER_S, transport.abort)


async def read_body(receive: Receive) -> bytes:
    """The whole request body, whose size the connection bounds."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return body
    parts = [body]
    while message.get("more_body"):
        message = await receive()
        parts.append(message.get("body", b""))
    return b"".join(parts)
