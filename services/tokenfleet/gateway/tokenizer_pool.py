"""The tokenizer pool as the gateway sees it: many jobs over one link each, conversations kept together.

A conversation's turns share a growing prefix, and a tokenizer that saw the turn before has most of it cached.
So the tokenizer is chosen by rendezvous hashing on tenant and beginning (`affinity`), but none may carry more
than a quarter above the mean: a popular beginning must not make one tokenizer the bottleneck.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import xxhash

from tokenfleet.gateway.persistent_link import PersistentLink
from tokenfleet.runtime.discovery import Peer
from tokenfleet.runtime.errors import FleetError, from_rpc_error
from tokenfleet.runtime.grpc_host import PeerChannel
from tokenfleet.runtime.roles import TOKENIZER
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import tokenizer_pb2, tokenizer_pb2_grpc

METHOD = "/tokenfleet.v1.Tokenizer/Encode"
BOUNDED_LOAD = 1.25


@dataclass(slots=True, eq=False)
class _Job:
    message: tokenizer_pb2.EncodeJob
    key: bytes
    answer: asyncio.Future[tokenizer_pb2.EncodeResult]


@dataclass(slots=True, eq=False)
class _Tokenizer:
    """One tokenizer, what it works on, and what leaves for it at the end of this turn of the loop."""

    target: str
    peer: Peer
    name: bytes  # what it is ranked by
    link: PersistentLink[tokenizer_pb2.EncodeRequest, tokenizer_pb2.EncodeResponse] | None = None
    channel: PeerChannel | None = None  # for the rare unary calls
    jobs: dict[int, _Job] = field(default_factory=dict)
    outgoing: tokenizer_pb2.EncodeRequest | None = None

    @property
    def up(self) -> bool:
        return self.link is not None and self.link.up

    @property
    def preferred(self) -> bool:
        return self.peer.ready and not self.peer.terminating

    def stub(self) -> tokenizer_pb2_grpc.TokenizerAsyncStub:
        if self.channel is None:
            self.channel = PeerChannel(self.target, TOKENIZER)
        return tokenizer_pb2_grpc.TokenizerStub(self.channel.get())

    async def stop(self) -> None:
        if self.link is not None:
            await self.link.stop()
        if self.channel is not None:
            await self.channel.close()

    def flush(self) -> None:
        if self.outgoing is not None and self.link is not None:
            outgoing, self.outgoing = self.outgoing, None
            self.link.send(outgoing)


class TokenizerPool:
    """Encodes on whichever tokenizer is up; a job whose tokenizer dies goes to another."""

    def __init__(self, *, frames: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._frames = frames
        self._tokenizers: dict[str, _Tokenizer] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._waiting: list[_Job] = []
        self._serving: list[_Tokenizer] | None = None  # None: to be found out again
        self._last_id = 0

    @property
    def ready(self) -> bool:
        return any(tokenizer.up for tokenizer in self._tokenizers.values())

    async def stop(self) -> None:
        await asyncio.gather(*(tokenizer.stop() for tokenizer in self._tokenizers.values()), *self._stopping)

    def peer_came(self, peer: Peer) -> None:
        """There shall be a tokenizer at that address."""
        tokenizer = self._tokenizers[peer.target] = _Tokenizer(peer.target, peer, peer.target.encode())
        tokenizer.link = self._link_to(tokenizer)
        tokenizer.link.start()

    def peer_changed(self, peer: Peer) -> None:
        self._tokenizers[peer.target].peer = peer
        self._serving = None

    def peer_left(self, target: str) -> None:
        """Whatever it has not answered goes to another."""
        tokenizer = self._tokenizers.pop(target)
        self._serving = None
        stopping = asyncio.create_task(tokenizer.stop())
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)
        self._reassign(tokenizer)

    async def encode(self, job: tokenizer_pb2.EncodeJob, affinity: str) -> tokenizer_pb2.EncodeResult:
        """Token ids and block hashes of the job's text. Raises FleetError as the tokenizer says."""
        self._last_id += 1
        job.job_id = self._last_id
        pending = _Job(job, affinity.encode("utf-8", "surrogatepass"), self._loop.create_future())
        self._assign(pending)
        try:
            result = await pending.answer
        finally:
            if pending.answer.cancelled() and pending in self._waiting:
                self._waiting.remove(pending)
        if result.HasField("failure"):
            raise FleetError.from_failure(result.failure)
        return result

    async def decode(self, model: str, token_ids: Sequence[int], timeout_s: float) -> str:
        """The ids as text, special tokens included. Raises FleetError as the tokenizer says."""
        failure = FleetError(pb.REASON_NO_WORKER, "no tokenizer can be reached", retry_after_s=1.0)
        request = tokenizer_pb2.DecodeRequest(model=model, token_ids=token_ids)
        for tokenizer in sorted(self._up, key=lambda one: len(one.jobs)):
            try:
                return (await tokenizer.stub().Decode(request, timeout=timeout_s)).text
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(error)
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    break
        raise failure

    def _assign(self, job: _Job) -> None:
        tokenizer = self._choose(job.key)
        if tokenizer is None:
            self._waiting.append(job)
            return
        tokenizer.jobs[job.message.job_id] = job
        if tokenizer.outgoing is None:
            tokenizer.outgoing = tokenizer_pb2.EncodeRequest()
            self._loop.call_soon(tokenizer.flush)
        tokenizer.outgoing.jobs.append(job.message)

    def _choose(self, key: bytes) -> _Tokenizer | None:
        up = self._up
        if len(up) <= 1:
            return up[0] if up else None
        limit = BOUNDED_LOAD * (sum([len(one.jobs) for one in up]) + 1) / len(up) + 1
        chosen, highest = None, -1
        for one in up:
            if len(one.jobs) < limit:
                rank = xxhash.xxh3_64_intdigest(one.name + key)
                if rank > highest:
                    chosen, highest = one, rank
        return chosen

    @property
    def _up(self) -> list[_Tokenizer]:
        """Those that can be reached; of them those that are to stay, if there are any."""
        if self._serving is None:
            up = [tokenizer for tokenizer in self._tokenizers.values() if tokenizer.up]
            self._serving = [tokenizer for tokenizer in up if tokenizer.preferred] or up
        return self._serving

    def _link_to(
        self, tokenizer: _Tokenizer
    ) -> PersistentLink[tokenizer_pb2.EncodeRequest, tokenizer_pb2.EncodeResponse]:
        return PersistentLink(
            tokenizer.target,
            METHOD,
            tokenizer_pb2.EncodeRequest,
            tokenizer_pb2.EncodeResponse.FromString,
            on_received=lambda messages: self._received(tokenizer, messages),
            on_up=self._assign_waiting,
            on_down=lambda: self._reassign(tokenizer),
            frames=self._frames,
        )

    def _received(self, tokenizer: _Tokenizer, messages: Sequence[tokenizer_pb2.EncodeResponse]) -> None:
        for message in messages:
            for result in message.results:
                job = tokenizer.jobs.pop(result.job_id, None)
                if job is not None and not job.answer.done():
                    job.answer.set_result(result)

    def _assign_waiting(self) -> None:
        self._serving = None
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            if not job.answer.done():
                self._assign(job)

    def _reassign(self, tokenizer: _Tokenizer) -> None:
        self._serving = None
        lost = list(tokenizer.jobs.values())
        tokenizer.jobs.clear()
        tokenizer.outgoing = None
        for job in lost:
            if not job.answer.done():
                self._assign(job)


def failure_if_too_long(prompt_tokens: int, budget: int | None, context_length: int) -> FleetError | None:
    """OpenAI's context error, with both lengths."""
    wanted = prompt_tokens + (budget or 1)
    if wanted <= context_length:
        return None
    asked = f"{budget} tokens of answer were asked for" if budget else "an answer needs at least one token"
    return FleetError(
        pb.REASON_CONTEXT_LENGTH_EXCEEDED,
        f"the model's context is {context_length} tokens, but the prompt has {prompt_tokens} and {asked}: "
        f"shorten the prompt or lower max_tokens (together {wanted} > {context_length})",
        field="max_tokens" if budget and prompt_tokens < context_length else "messages",
    )
