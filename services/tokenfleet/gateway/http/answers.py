"""What HTTP and WebSocket share: from a request to the sequences that answer it, and what is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as SequenceOf
from typing import Any

from tokenfleet.gateway.affinity import AFFINITY_CHARS, conversation_affinity
from tokenfleet.gateway.api_keys.keyring import Caller
from tokenfleet.gateway.core import Gateway, Order, Prompt
from tokenfleet.gateway.fallback import Fallback
from tokenfleet.gateway.http.errors import invalid
from tokenfleet.gateway.http.schemas import ChatCompletionRequest, CompletionRequest, Message
from tokenfleet.gateway.sequence import Generation, Sequence, Sink
from tokenfleet.gateway.urgency import STANDARD, Urgency
from tokenfleet.v1 import tokenizer_pb2

Request = ChatCompletionRequest | CompletionRequest
Prepared = SequenceOf[tuple[Generation, int]]


def order_of(
    request: Request,
    request_id: str,
    deadline: float,
    caller: Caller,
    *,
    urgency: Urgency = STANDARD,
    fallback: bool = True,
) -> Order:
    return Order(
        request_id=request_id,
        model=request.model,
        sampling=request.sampling(),
        budget=request.budget,
        deadline=deadline,
        tenant=caller.tenant,
        priority=caller.priority(urgency.priority),
        urgency=urgency,
        fallback=fallback,
    )


async def prepare(gateway: Gateway, request: Request, order: Order) -> Prepared:
    """The request's prompts, tokenized. Raises FleetError when they cannot be served."""
    prompts = _prompts(request)
    wanted, limit = (request.n or 1) * len(prompts), gateway.settings.max_choices
    if wanted > limit:
        raise invalid("n", f"n: at most {limit} answers a request, and {wanted} were asked for")
    if len(prompts) == 1:
        return [await gateway.prepare(order, prompts[0])]
    return await asyncio.gather(*(gateway.prepare(order, prompt) for prompt in prompts))


def sequences_of(prepared: Prepared, choices: int, sink: Sink) -> list[Sequence]:
    """One for each answer; those to the same prompt stand together."""
    return [
        Sequence(generation, position * choices + choice, budget, sink)
        for position, (generation, budget) in enumerate(prepared)
        for choice in range(choices)
    ]


def usage_of(sequences: SequenceOf[Sequence], choices: int) -> dict[str, Any]:
    """Each prompt counts once, each answer in full, however many attempts it took."""
    prompt = completion = cached = 0
    for sequence in sequences:
        completion += len(sequence.ids)
        if sequence.index % choices == 0:
            prompt += sequence.generation.prompt_tokens
            cached += sequence.cached_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def provenance_of(
    sequences: SequenceOf[Sequence], *, with_ids: bool, fallback: Fallback | None
) -> dict[str, Any]:
    """Who answered instead of whom; for clients that asked for token ids also where each token came from."""
    told: dict[str, Any] = {}
    if with_ids:
        told["attempts"] = [
            [
                {"worker_id": attempt.worker_id, "from_token": attempt.from_token}
                for attempt in sequence.attempts
            ]
            for sequence in sequences
        ]
    if fallback is not None:
        told["fallback"] = fallback.as_json()
    provenance: dict[str, Any] = {"tokenfleet": told} if told else {}
    if with_ids:
        provenance["prompt_token_ids"] = sequences[0].generation.prompt.ids()
    return provenance


def _prompts(request: Request) -> list[Prompt]:
    if isinstance(request, ChatCompletionRequest):
        return [chat_prompt(request.messages, add_generation_prompt=True)]
    return [text_prompt(prompt) for prompt in request.prompts()]


def chat_prompt(messages: SequenceOf[Message], *, add_generation_prompt: bool) -> Prompt:
    job = tokenizer_pb2.EncodeJob()
    chat = job.chat
    chat.add_generation_prompt = add_generation_prompt
    said: list[tuple[str, str]] = []
    for message in messages:
        role, text = message.role, message.text
        said.append((role, text))
        told = chat.messages.add(role="system" if role == "developer" else role, content=text)
        if message.name:
            told.name = message.name
    return Prompt(job, conversation_affinity(said))


def text_prompt(prompt: str | list[int]) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(tokenizer_pb2.EncodeJob(text=prompt, add_special_tokens=True), prompt[:AFFINITY_CHARS])
    tokens = tokenizer_pb2.TokenInput(token_ids=prompt)
    return Prompt(tokenizer_pb2.EncodeJob(tokens=tokens), str(prompt[:64]))
