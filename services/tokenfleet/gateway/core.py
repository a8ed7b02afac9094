"""What every protocol of the gateway stands on: from text to a prepared generation, and running it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

from tokenfleet.gateway.api_keys.keyring import Keyring
from tokenfleet.gateway.fallback import Fallback, ModelUnavailable, with_fallback
from tokenfleet.gateway.generator import Generator
from tokenfleet.gateway.loader_client import LoaderClient
from tokenfleet.gateway.metrics import GatewayMetrics
from tokenfleet.gateway.packed_prompt import PackedPrompt
from tokenfleet.gateway.sequence import Generation, Sequence
from tokenfleet.gateway.settings import GatewaySettings
from tokenfleet.gateway.tokenizer_pool import TokenizerPool, failure_if_too_long
from tokenfleet.gateway.urgency import STANDARD, Urgency
from tokenfleet.gateway.write_batch import WriteBatch
from tokenfleet.runtime.catalog import CatalogWatch
from tokenfleet.runtime.discovery import OwnZone
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import tokenizer_pb2


@dataclass(slots=True)
class Order:
    """What a client asked for, independent of the protocol it used."""

    request_id: str
    model: str
    sampling: pb.SamplingParams
    budget: int | None  # tokens; None: what the context leaves
    deadline: float  # on the event loop's clock
    tenant: str = "default"
    priority: pb.Priority.ValueType = pb.PRIORITY_STANDARD  # what the caller may have
    urgency: Urgency = STANDARD
    fallback: bool = True  # another model may answer where this one cannot be had


@dataclass(slots=True)
class Prompt:
    """One prompt still to be tokenized; prompts of equal affinity go to one tokenizer."""

    job: tokenizer_pb2.EncodeJob
    affinity: str


class Gateway:
    """The services behind the gateway, and the two steps of a request."""

    def __init__(
        self,
        settings: GatewaySettings,
        catalog: CatalogWatch,
        tokenizers: TokenizerPool,
        generator: Generator,
        metrics: GatewayMetrics,
        writes: WriteBatch,
        *,
        keys: Keyring,
        zone: OwnZone,
        loader: LoaderClient,
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.loader = loader
        self.catalog = catalog
        self.metrics = metrics
        self.writes = writes
        self._zone = zone
        self._tokenizers = tokenizers
        self._generator = generator
        self._loop = asyncio.get_running_loop()

    async def answer(
        self, order: Order, attempt: Callable[[Order], Awaitable[None]], instead: Callable[[Fallback], None]
    ) -> None:
        """Attempts the order, where its model cannot be had also with those that stand in for it.

        `instead` is told of each stand-in before it begins. Raises FleetError.
        """
        spec = self.catalog.models.get(order.model)
        if not order.fallback or spec is None or not spec.fallback:
            await attempt(order)
            return

        def told(fallback: Fallback) -> None:
            self.metrics.fallbacks.labels(fallback.reason).inc()
            instead(fallback)

        await with_fallback(
            order.model, self.catalog.models, lambda model: attempt(replace(order, model=model)), told
        )

    async def prepare(self, order: Order, prompt: Prompt) -> tuple[Generation, int]:
        """The tokenized prompt and its budget in tokens. Raises FleetError when it cannot be served: as
        ModelUnavailable when its model is why."""
        spec = self.catalog.get(order.model)
        if prompt.job.HasField("tokens"):
            _check_length(len(prompt.job.tokens.token_ids), order, spec)
        try:
            encoded = await self._encode(order, prompt, spec.context_length)
        except FleetError as error:
            if error.reason == pb.REASON_LOAD_FAILED:  # what its tokenizer comes from is broken or away
                raise ModelUnavailable.of(error) from error
            raise
        count = encoded.token_count
        _check_length(count, order, spec)
        self.metrics.prompt_tokens += count
        generation = Generation(
            context=prompt.job.context,
            model=order.model,
            sampling=order.sampling,
            deadline=order.deadline,
            prompt=PackedPrompt.of(encoded),
            prompt_tokens=count,
            features=_required_features(order.sampling),
            replaceable=order.fallback and spec.fallback != "",
            urgency=order.urgency,
        )
        return generation, order.budget or spec.context_length - count

    async def count(self, order: Order, prompt: Prompt) -> int:
        """The prompt's length in tokens. Raises FleetError when it cannot be tokenized."""
        self.catalog.get(order.model)
        return (await self._encode(order, prompt)).token_count

    async def tokenize(self, order: Order, prompt: Prompt) -> SequenceOf[int]:
        """The prompt's token ids. Raises FleetError when it cannot be tokenized."""
        self.catalog.get(order.model)
        limit = self.settings.max_body_values
        encoded = await self._encode(order, prompt, limit)
        if encoded.token_count > limit:
            raise FleetError(
                pb.REASON_CONTEXT_LENGTH_EXCEEDED,
                f"the prompt has {encoded.token_count} tokens, and {limit} are shown at most: shorten it "
                "(the gateway's --max-body-values)",
                field="prompt",
            )
        return encoded.token_ids

    async def detokenize(self, model: str, token_ids: SequenceOf[int], timeout_s: float) -> str:
        """The text of token ids. Raises FleetError when they are none of the model's."""
        self.catalog.get(model)
        return await self._tokenizers.decode(model, token_ids, timeout_s)

    async def run(
        self, sequences: SequenceOf[Sequence], finished: Callable[[Sequence], None] = lambda _: None
    ) -> None:
        """All answers of one request, `finished` called with each; the first failure ends the others."""
        if len(sequences) == 1:
            await self._generator.run(sequences[0])
            finished(sequences[0])
            return

        async def run(sequence: Sequence) -> None:
            await self._generator.run(sequence)
            finished(sequence)

        try:
            async with asyncio.TaskGroup() as group:
                for sequence in sequences:
                    group.create_task(run(sequence))
        except* FleetError as failures:
            failure = failures.exceptions[0]
            if isinstance(failure, ModelUnavailable) and any(sequence.ids for sequence in sequences):
                raise FleetError.from_failure(failure.to_failure()) from failures  # one of them has begun
            raise failure from failures

    async def _encode(self, order: Order, prompt: Prompt, max_tokens: int = 0) -> tokenizer_pb2.EncodeResult:
        job = prompt.job
        job.model = order.model
        job.max_tokens = max_tokens
        context = job.context
        context.request_id = order.request_id
        context.tenant = order.tenant
        context.priority = order.priority
        context.client_zone = self._zone.name
        context.deadline_ms = max(1, round((order.deadline - self._loop.time()) * 1000))
        return await self._tokenizers.encode(job, order.tenant + prompt.affinity)


def _check_length(tokens: int, order: Order, spec: pb.ModelSpec) -> None:
    """Raises FleetError when the prompt and its answer do not fit, or there is no prompt."""
    too_long = failure_if_too_long(tokens, order.budget, spec.context_length)
    if too_long is not None:
        raise too_long
    if not tokens:
        message = "the prompt has no tokens: send something that the model's vocabulary knows"
        raise FleetError(pb.REASON_INVALID_ARGUMENT, message, field="prompt")


def _required_features(sampling: pb.SamplingParams) -> list[str]:
    """What only some engines can do, by the names under which workers publish it."""
    features = []
    if sampling.HasField("logprobs"):
        features.append("logprobs")
    if sampling.json_schema:
        features.append("json_schema")
    if sampling.min_tokens:
        features.append("min_tokens")
    return features
