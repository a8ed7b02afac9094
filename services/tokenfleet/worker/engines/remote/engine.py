"""The remote engine: a vendor's engine server beside the worker, attached to over gRPC."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, ClassVar

import grpc
import orjson

from tokenfleet.core.engine_model import StallDetector
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2, worker_pb2
from tokenfleet.worker.engines.arguments import parse_arguments
from tokenfleet.worker.engines.base import (
    EngineFacts,
    EngineLoad,
    Finished,
    Generation,
    ModelFiles,
    Sink,
    load_failed,
)
from tokenfleet.worker.engines.gathered_step import GatheredStep
from tokenfleet.worker.engines.hosted.lives import Lives
from tokenfleet.worker.engines.llamacpp.step_clock import StepClock
from tokenfleet.worker.engines.remote.arguments import RemoteArguments
from tokenfleet.worker.engines.remote.cache_feed import CacheFeed
from tokenfleet.worker.engines.remote.dialects import dialect_named
from tokenfleet.worker.engines.remote.dialects.base import Dialect, ServerFacts, TokenLogprob
from tokenfleet.worker.engines.remote.load import LoadBook
from tokenfleet.worker.engines.remote.sequence import RemoteSequence
from tokenfleet.worker.engines.remote.server import Server, failure_of, in_words
from tokenfleet.worker.engines.step_log import StepLog

# Sequences at once, where neither the server nor the entry says.
DEFAULT_SEQUENCES = 64
LOAD_EVERY_S = 1.0
WATCHDOG_S = 1.0
# Wedged: no token for so many times the slowest step, but for no less than the argument says.
STEPS_MISSED = 20.0
# Codes by which one call's failure may be the whole server's.
_SUSPICIOUS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
)

log = get_logger(__name__)


class RemoteEngine:
    needs_weights: ClassVar[bool] = False
    needs_folder: ClassVar[bool] = False

    def __init__(self, threads: int = 1) -> None:
        del threads
        self.steps = StepLog()
        self.features: frozenset[str] = frozenset()
        self._loop = asyncio.get_running_loop()
        self._clock = StepClock(self.steps)
        self._nonce = secrets.token_hex(4)
        self._server: Server | None = None
        self._feed: CacheFeed | None = None
        self._sequences: dict[int, RemoteSequence] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._examining: asyncio.Task[None] | None = None
        self._context_tokens = 0
        self._messages = 0
        self._to_abort: list[str] = []

    async def load(self, model: ModelFiles, sink: Sink) -> EngineFacts:
        self._arguments = parse_arguments("remote", RemoteArguments, model.arguments)
        self._dialect: Dialect = dialect_named(self._arguments.dialect)
        self._model = model
        self._sink = sink
        self._step = GatheredStep(sink)
        self._end_ids = model.vocabulary.special_ids
        self._lives = Lives(self._attach, self._attached_again)
        await self._lives.begin()
        return self._facts

    def submit(self, generation: Generation) -> None:
        if not self._lives.up or self._server is None:
            raise FleetError(common_pb2.REASON_NOT_RESIDENT, "the engine server is away")
        request_id = f"{self._nonce}-{generation.key}"
        request = self._dialect.request(generation, request_id)
        now = time.monotonic()
        sequence = RemoteSequence(generation, request_id, now)
        if not self._sequences:
            self._clock.began(now)
        self._sequences[generation.key] = sequence
        self._context_tokens += len(generation.token_ids)
        sequence.call = self._generate(request)
        sequence.reading = self._spawn(self._read(sequence))
        self._watch_for_stalls()

    def abort(self, key: int) -> Finished | None:
        sequence = self._sequences.get(key)
        if sequence is None:
            return None
        self._forget(sequence)
        self._cut(sequence)
        if not self._to_abort:
            self._loop.call_soon(self._send_aborts)
        self._to_abort.append(sequence.request_id)
        return sequence.finished(common_pb2.FINISH_REASON_CANCELLED)

    def restart(self, cause: str) -> None:
        """It is not ours to kill: whoever runs it does that. Here it is given up, and attached to anew."""
        failure = FleetError(
            common_pb2.REASON_ENGINE_FAILED,
            f"engine remote: the server at {self._arguments.address} was given up: {cause}",
        )
        self._lost(cause, failure)

    def load_now(self) -> EngineLoad:
        return self._book.now(self._sequences.values())

    async def unload(self) -> int:
        if not hasattr(self, "_lives"):
            return 0
        await self._lives.end()
        if self._watchdog is not None:
            self._watchdog.cancel()
        for sequence in tuple(self._sequences.values()):
            self._forget(sequence)
            self._cut(sequence)
        await self._detach()
        for task in tuple(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        return 0

    # Sequences

    async def _read(self, sequence: RemoteSequence) -> None:
        """One task for each sequence: grpc.aio hands out messages in no other way."""
        call = sequence.call
        read = self._dialect.read
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                if sequence.key in self._sequences:
                    self._on_piece(sequence, read(message))
            failure = FleetError(
                common_pb2.REASON_ENGINE_FAILED, "engine remote: the server ended an answer without a reason"
            )
        except grpc.aio.AioRpcError as error:
            failure = failure_of(error)
            if error.code() in _SUSPICIOUS and sequence.key in self._sequences:
                await self._examined(in_words(error))
        if sequence.key in self._sequences:
            self._finish(sequence, sequence.finished(common_pb2.FINISH_REASON_FAILED, failure))

    def _on_piece(self, sequence: RemoteSequence, piece: Any) -> None:
        now = time.monotonic()
        self._messages += 1
        before = sequence.received
        ids = sequence.take(piece, self._end_ids)
        if new := sequence.received - before:
            self._context_tokens += new
            prefilled = 0
            if not sequence.first_token_at:
                sequence.first_token_at = now
                sequence.cached_tokens = piece.cached_tokens
                prefilled = len(sequence.generation.token_ids) - piece.cached_tokens
            self._clock.spoke(now, sequence.key, self._context_tokens, max(0, prefilled))
        if ids:
            self._step.tokens(sequence.key, ids)
            if sequence.logprobs:
                self._tell_logprobs(sequence, len(ids))
        if piece.finish:
            self._finish(sequence, sequence.ended(piece.finish))

    def _tell_logprobs(self, sequence: RemoteSequence, count: int) -> None:
        told, sequence.logprobs = sequence.logprobs[:count], sequence.logprobs[count:]
        self._step.logprobs((sequence.key, self._record(one)) for one in told)

    def _record(self, said: TokenLogprob) -> worker_pb2.TokenLogprobs:
        text_of = self._model.vocabulary.text_of
        top = [
            worker_pb2.TokenLogprobs.Alternative(token_id=token, text=text_of(token), logprob=logprob)
            for token, logprob in said.top
        ]
        return worker_pb2.TokenLogprobs(
            token_id=said.token_id, text=text_of(said.token_id), logprob=said.logprob, top=top
        )

    def _finish(self, sequence: RemoteSequence, record: Finished) -> None:
        self._forget(sequence)
        self._step.ended(record)

    def _forget(self, sequence: RemoteSequence) -> None:
        del self._sequences[sequence.key]
        self._context_tokens -= sequence.context_tokens
        if not self._sequences:
            self._context_tokens = 0
            self._clock.idle()
            self._book.idle()

    def _cut(self, sequence: RemoteSequence) -> None:
        """Hangs up: the server notices, and frees what the sequence holds."""
        sequence.call.cancel()
        if sequence.reading is not None:
            sequence.reading.cancel()

    def _send_aborts(self) -> None:
        """Said in words too, once for all of a turn: not every server notices that its caller hung up."""
        request_ids, self._to_abort = self._to_abort, []
        if self._server is not None:
            for request, response in self._dialect.aborts(request_ids):
                self._spawn(_unheard(self._server.ask("Abort", request, response)))

    # The server

    async def _attach(self) -> None:
        """Raises FleetError when there is no server that can run this model."""
        server = Server(self._arguments, self._dialect.service)
        server.own_health = lambda: self._dialect.own_health(server)
        feed = CacheFeed(server, self._model.block_size, self._sink, flush=self._arguments.flush_cache)
        try:
            await server.until_ready()
            facts = await self._dialect.describe(server)
            self._check(facts)
            publishes = await feed.open()
        except BaseException as error:
            feed.stop()
            await server.close()
            if isinstance(error, grpc.aio.AioRpcError):
                raise load_failed(
                    f"engine remote: the server at {self._arguments.address} does not answer as it should: "
                    f"{in_words(error)}"
                ) from error
            raise
        self._use(server, feed, facts, publishes)

    def _use(self, server: Server, feed: CacheFeed, said: ServerFacts, publishes: bool) -> None:
        self._server, self._feed = server, feed
        self._generate = server.stream(
            "Generate", self._dialect.generate_request, self._dialect.generate_response
        )
        self.features = self._dialect.features | ({"cache_events"} if publishes else set())
        self._end_ids = self._model.vocabulary.special_ids | frozenset(said.end_ids)
        self._facts = self._facts_from(said)
        self._book = LoadBook(self._model.block_size, self._facts.kv_blocks_total, self._facts.max_sequences)
        self._watching = asyncio.create_task(self._watch(server))
        log.info(
            "attached to the engine server",
            address=self._arguments.address,
            engine=self._dialect.engine,
            version=said.engine_version,
            serves=said.model,
            cache_events=publishes,
        )

    def _check(self, said: ServerFacts) -> None:
        wanted, size = self._arguments.model, self._model.vocabulary.size
        if wanted and said.model != wanted:
            raise load_failed(
                f"engine remote: the server at {self._arguments.address} serves {said.model!r}, but the "
                f"argument model of {self._model.name} wants {wanted!r}"
            )
        fits = said.vocabulary_size >= size if said.whole_vocabulary else said.vocabulary_size <= size
        if said.vocabulary_size and not fits:
            raise load_failed(
                f"engine remote: the server's model {said.model!r} has {said.vocabulary_size} tokens, but "
                f"the tokenizer of {self._model.name} {size}: they do not belong together"
            )

    def _facts_from(self, said: ServerFacts) -> EngineFacts:
        arguments, model = self._arguments, self._model
        context = min(model.context_length, said.context_length or model.context_length)
        identity = hashlib.sha256(orjson.dumps(list(said.identity), default=list)).hexdigest()
        return EngineFacts(
            fingerprint=common_pb2.Fingerprint(
                engine=self._dialect.engine,
                engine_version=said.engine_version,
                weights_digest=f"served:{identity}",
                dtype=said.dtype,
            ),
            max_sequences=arguments.max_sequences or said.max_sequences or DEFAULT_SEQUENCES,
            context_length=context,
            kv_blocks_total=(arguments.kv_tokens or said.kv_tokens) // model.block_size,
            vocabulary_size=said.vocabulary_size if said.whole_vocabulary else 0,
        )

    async def _watch(self, server: Server) -> None:
        """Until the server is lost; asks how busy it is meanwhile."""
        asking = asyncio.create_task(self._ask_for_load(server))
        try:
            why = await server.until_lost()
        finally:
            asking.cancel()
        self._lost("died", self._loss(why))

    async def _ask_for_load(self, server: Server) -> None:
        while True:
            await asyncio.sleep(LOAD_EVERY_S)
            own = len(self._sequences)
            try:
                said = await self._dialect.load(server)
            except grpc.aio.AioRpcError as error:
                log.debug("the engine server tells no load", why=in_words(error))
                continue
            if said is None:
                return
            if bool(own) == bool(self._sequences):
                self._book.server_said(said, own)

    async def _examined(self, words: str) -> None:
        """Is it one call that failed, or the server? All who ask wait for one answer."""
        if self._examining is None:
            self._examining = asyncio.create_task(self._examine(words))
        await asyncio.shield(self._examining)

    async def _examine(self, words: str) -> None:
        try:
            server = self._server
            if server is not None and (why := await server.not_ready()):
                self._lost("died", self._loss(f"{words}; {why}"))
        finally:
            self._examining = None

    def _loss(self, why: str) -> FleetError:
        return FleetError(
            common_pb2.REASON_ENGINE_FAILED,
            f"engine remote: lost the engine server at {self._arguments.address}: {why}",
        )

    def _lost(self, cause: str, failure: FleetError) -> None:
        """Its sequences may go on elsewhere; the server is attached to again when it is back."""
        if not self._lives.up:
            return
        for sequence in tuple(self._sequences.values()):
            self._forget(sequence)
            self._cut(sequence)
            self._step.ended(sequence.finished(common_pb2.FINISH_REASON_FAILED, failure))
        self._step.flush()
        leaving = self._detach()
        self._sink.engine_down(cause, failure)
        self._spawn(leaving)
        self._lives.died()

    def _attached_again(self) -> None:
        self._sink.engine_up(self._facts)

    def _detach(self) -> Coroutine[Any, Any, None]:
        """From now on nothing comes from the server; what is left to do may take a moment."""
        server, feed, watching = self._server, self._feed, self._watching
        self._server = self._feed = self._watching = None
        if watching is not None:
            watching.cancel()
        if feed is not None:
            feed.stop()
        return _close(server)

    def _watch_for_stalls(self) -> None:
        if self._watchdog is None:
            self._stall = StallDetector(
                steps_missed=STEPS_MISSED, least_s=self._arguments.stall_timeout_s, interval_s=WATCHDOG_S
            )
            self._look_for_stall()

    def _look_for_stall(self) -> None:
        """Looks again as long as there is work."""
        self._watchdog = None
        busy = bool(self._sequences)
        slowest_s = max((step.duration_s for step in self.steps.since(0)), default=0.0)
        if self._stall.wedged(time.monotonic(), busy=busy, steps=self._messages, slowest_s=slowest_s):
            self.restart("wedged")
        elif busy:
            self._watchdog = self._loop.call_later(WATCHDOG_S, self._look_for_stall)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


async def _unheard(call: Awaitable[Any]) -> None:
    """A message that may get lost: the caller has hung up anyway."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        log.debug("abort was not answered", why=in_words(error))


async def _close(server: Server | None) -> None:
    if server is not None:
        await server.close()
